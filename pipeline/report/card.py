"""A Hugging Face model card with the results in its metadata, where hubs and scripts can read them."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline.evals.measures import all_measures
from pipeline.report.build import Report
from pipeline.report.render import render


def model_card(report: Report) -> str:
    """Return the card of a report's last model: YAML metadata, then Markdown."""
    results = report.results
    last = results.models[-1]
    data = ModelCardData(
        base_model=report.model_path if is_hub_id(report.model_path) and report.model_path != last else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["constitutional-ai", "rlaif", "alignment"],
        model_name=report.title,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                task_name="Safety and helpfulness",
                dataset_type=f"cai-{'-'.join(results.suites)}",
                dataset_name="suites of the evaluation",
                metric_type=name,
                metric_name=all_measures()[name].title,
                metric_value=round(found.value, 4),
                metric_args={"low": found.low, "high": found.high, "total": found.total},
            )
            for name, found in results.measures[last].items()
            if found.value is not None
        ],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{render('card.md.j2', report)}")
    return str(card)


def is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))
