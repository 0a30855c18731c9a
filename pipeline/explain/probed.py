"""The probes of a run, and every model's replies to them: those of the evaluation, or new ones."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import NotMeasuredError
from pipeline.engines.worklist import generate_all
from pipeline.evals.judges import refusal
from pipeline.explain.adherence_counts import answered_by_all
from pipeline.explain.base import Material
from pipeline.explain.compliance import greedy_request
from pipeline.explain.probes import Probe, asked_directly, choose, fill, read_probes
from pipeline.explain.written_probes import write_probes
from pipeline.records import Verdict

Verdicts = dict[str, dict[str, Verdict]]
"""Case id → model → its reply and the outcome."""


def probed(material: Material, file: str | None, num_probes: int, num_written: int) -> tuple[list[Probe], Verdicts]:
    """The probes to which every model replied, and the replies. The models are asked what the evaluation did not ask.

    Args:
        file: gives the probes; None: at most ``num_written`` for each principle are asked for from the critic, and the
            others are drawn from the evaluation.
        num_probes: the most for each principle, without a file.

    Raises:
        NotMeasuredError: there is none.
    """
    verdicts = answered_by_all(material.verdicts, list(material.models))
    asked = asked_directly(verdict.case for mine in material.verdicts.values() for verdict in mine)
    if file is None:
        number = min(num_written, num_probes)
        written = write_probes(material, number) if number else []
        cases = asked_directly(mine[material.first].case for mine in verdicts.values())
        drawn = choose(material.constitution, list(cases.values()), num_probes)
        probes = fill(material.constitution, written, drawn, num_probes)
    else:
        probes = read_probes(file, material.constitution, asked, material.prompts)
    new = [probe for probe in probes if probe.case_id not in asked]
    verdicts |= verdicts_on(new, material, material.context.suites.max_reply_tokens) if new else {}
    left = [probe for probe in probes if probe.case_id in verdicts]
    if not left:
        raise NotMeasuredError("there is no request without an attack to which every model replied")
    if lost := len(probes) - len(left):
        material.notes.append(f"adherence: {lost} of {len(probes)} requests have no reply of every model.")
    return left, verdicts


def verdicts_on(probes: Sequence[Probe], material: Material, max_reply_tokens: int) -> Verdicts:
    """Greedy replies, and their outcomes by the patterns of ``evals/judges/refusal.py``.

    Requests to which a model gave no reply are left out.
    """
    cases = {probe.case_id: probe.case for probe in probes}
    requests = [greedy_request(name, case, material.seed, max_reply_tokens) for name, case in cases.items()]
    found: Verdicts = {name: {} for name in cases}
    for number, model in enumerate(material.models):
        label = f"adherence: replies of {model}"
        replies = generate_all(material.engine(model), label, requests, material.context, f"probes-{number}")
        for request in requests:
            reply, case = replies[request.id], cases[request.id]
            if reply.why_unanswered:
                continue
            outcome, evidence = refusal.judge_reply(reply.text, case.prompt.request)
            found[request.id][model] = Verdict(
                case=case,
                model=model,
                reply=reply.text,
                num_tokens=reply.num_tokens,
                seed=request.seed,
                outcome=outcome,
                evidence=evidence,
                judge=refusal.NAME,
            )
    return {name: mine for name, mine in found.items() if len(mine) == len(material.models)}
