"""What each ingredient of a recipe is for: leave it out, train again, and ask prompts that nobody trained on.

    python scripts/leave_one_out.py harmful.jsonl look_alikes.jsonl ordinary.jsonl
    python scripts/leave_one_out.py harmful.jsonl look_alikes.jsonl ordinary.jsonl --only whole contrasts -- seed=1

Each line of a file is ``{"prompt": …}``. Each variant is a run of its own in ``--output``; what the runs share is made
once, and what is finished is not made again. What follows ``--`` goes to every run. At the end it prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import Run
from pipeline.evals.measures import all_measures
from pipeline.evals.results import Estimate
from pipeline.report.wording import markdown_table

VARIANTS: dict[str, tuple[str, list[str]]] = {
    "whole": ("nothing", []),
    "contrasts": ("written contrasts among the labels", ["preferences.num_contrasts=0"]),
    "look_alikes": ("look-alikes among the labels", ["preferences.num_look_alike=0"]),
    "refusal_words": ("the words of refusals", ["align.refusal_weight=0"]),
    "kl": ("the KL penalty", ["align.kl_weight=0"]),
    "weight": ("the weight of declining", ["align.declining_weight=1"]),
    "sft": ("supervised fine-tuning (learning rate 1e-9)", ["sft.learning_rate=1e-9"]),
    "align": ("the alignment after supervised fine-tuning (learning rate 1e-9)", ["align.learning_rate=1e-9"]),
}
"""name → what is left out, and the settings that leave it out"""
SUITES = ("red_team", "over_refusal", "helpfulness")
MEASURES = ("harmful_refused", "harmful_complied", "look_alike_refused", "ordinary_refused", "preferred", "broken")


def cai(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], check=True)


def evaluation(variant: str, files: Sequence[Path], output: Path, model: str, overrides: Sequence[str]) -> Run:
    """Train a variant, and evaluate it on the files. Returns the evaluation."""
    shared = ["tracking=none", f"output_dir={output}"]
    cai("run", f"name=without-{variant}", "until=align", *shared, *overrides, *VARIANTS[variant][1])
    asked = [f"evaluate.suites=[{','.join(SUITES)}]", "evaluate.guidelines=null"]
    for suite, file in zip(SUITES, files, strict=True):
        number = len(file.read_text(encoding="utf-8").splitlines())
        asked += [f"evaluate/{suite}=file", f"evaluate.{suite}.path={file}", f"evaluate.{suite}.num_requests={number}"]
    name = f"asked-without-{variant}"
    trained = output / "runs" / f"without-{variant}"
    cai("evaluate", str(trained), "--base", model, f"name={name}", "evaluate.red_team.num_attacked=1", *asked, *shared)
    return Run.load(name, str(output))


def row(what: str, run: Run, model: str) -> dict[str, object]:
    """One model's measures, as a row of the table."""
    rows = json.loads((run.folder / "tables" / "measures.json").read_text(encoding="utf-8"))
    found = {each["measure"]: each for each in rows if each["model"] == model}
    titles = {name: all_measures()[name].title for name in MEASURES if name in found}
    fields = Estimate.model_fields
    return {"without": what} | {
        title: Estimate.model_validate({field: found[name][field] for field in fields})
        for name, title in titles.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=3, type=Path, metavar="FILE", help="harmful, look-alike and ordinary requests")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--base", default="embedded", help="the model to compare with")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    args, overrides = parser.parse_args(words[:end]), words[end + 1 :]
    files = [file.resolve() for file in args.files]
    runs = {name: evaluation(name, files, args.output, args.base, overrides) for name in args.only}
    rows = [row(VARIANTS[name][0], run, f"without-{name}") for name, run in runs.items()]
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
