"""Does each model keep to each principle, by the labeller and by a second judge?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.core.stage import Cost, Prepared
from pipeline.engines.votes import cost_of_choices
from pipeline.evals.cases import build_cases
from pipeline.evals.judges import refusal
from pipeline.evals.results import Estimate
from pipeline.evals.scores import Scores
from pipeline.explain import written_probes
from pipeline.explain.adherence_counts import (
    MEASURE,
    NUM_CHECKED,
    Kept,
    agree,
    by_principle,
    first_of_each,
    kept,
)
from pipeline.explain.base import Findings, Material, Measures, Question
from pipeline.explain.costs import SPECIMEN, direct_cases, models_of, tokens_per_case
from pipeline.explain.keeping import (
    QUESTIONS,
    TEMPLATE,
    Reply,
    as_score,
    by_outcome,
    is_judged,
    labeller_of_replies,
    log_odds,
    num_questions,
)
from pipeline.explain.probed import probed
from pipeline.explain.probes import FILE, Probe, Source, asked_directly, nearly_trained, probes_content, read_probes
from pipeline.labellers.base import TEMPLATE as LABELLER_TEMPLATE
from pipeline.labellers.base import LabellerConfig, reads_choices
from pipeline.records import Verdict, write_records
from pipeline.writing.asks import WriteAsk


class AdherenceConfig(Settings):
    """Does each model keep to each principle, on held-out requests that put it to the test?"""

    enabled: bool = True
    """Answer this question."""
    num_probes: int = Field(default=12, ge=1)
    """The most requests for each principle."""
    num_written: int = Field(default=6, ge=0)
    """At most so many of them are written by the engine of the labeller, if its labels come from the words of the
    principles; the others are from the evaluation, chosen by the tags and the words of the principle."""
    probes: str | None = None
    """A file with the requests of each principle (columns principle_id and request, and pool for a request that the
    evaluation does not ask), such as an edited ``probes.jsonl`` of an earlier run; null: they are written and
    chosen."""

    def key_of(self, name: str) -> Any:
        """The file counts by its content."""
        return probes_content(self.probes) if name == "probes" and self.probes else super().key_of(name)


class Probed(BaseModel):
    """A principle, and how many requests put it to the test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    num_probes: int


class AdherenceFindings(Findings):
    """How often each model keeps to each principle, and what the judges are worth."""

    principles: list[Probed]
    """In the order of the constitution; without those that no request tests."""
    not_tested: list[str]
    """Titles of the others."""
    num_by_source: dict[Source, int] = Field(default={})
    """Number of requests by where they are from."""
    by_labeller: Kept
    """Empty if it was not asked: it gave no label of the run, and knows only whether a reply declines."""
    labeller_knows_more: bool
    """Than whether a reply declines. If not, it is asked about few replies, to see whether it agrees."""
    by_outcome: Kept
    """The second judge: the outcomes of the evaluation."""
    agreement: Estimate
    """How often both judges say the same; without written requests, which the labeller's engine has judged before."""
    kappa: Estimate
    """Cohen's κ of both judges: 0 is the agreement of two judges by chance, 1 that of equal ones."""

    @property
    def labeller_was_asked(self) -> bool:
        return bool(self.by_labeller.judge)

    @property
    def labeller_beats_chance(self) -> bool:
        return self.kappa.low is not None and self.kappa.low > 0

    @property
    def trusted(self) -> Kept:
        """The labeller, if it knows more than the second judge and their agreement beats chance; otherwise the second
        judge."""
        return self.by_labeller if self.labeller_knows_more and self.labeller_beats_chance else self.by_outcome

    def measures(self) -> Measures:
        found: Measures = {}
        for principle_id, rates in self.trusted.rates.items():
            for model, rate in rates.items():
                found.setdefault(model, {})[f"{MEASURE}:{principle_id}"] = rate
        return found


class Adherence(Question):
    """Does each model keep to each principle, by the labeller and by a second judge?"""

    name = "adherence"
    asks_labeller = True

    def reads(self, config: AdherenceConfig) -> dict[str, Any]:
        return {
            "template": TEMPLATE,
            "labeller": LABELLER_TEMPLATE,
            "questions": QUESTIONS,
            "writing": written_probes.reads() if config.num_written and config.probes is None else [],
            "judge": refusal.NAME,
        }

    def check(self, config: AdherenceConfig, prepared: Prepared) -> list[str]:
        if config.probes is None:
            return []
        suites = prepared.config.evaluate
        held_out = [prompt for prompt in prepared.prompts if prompt.split == suites.split]
        cases = asked_directly(build_cases(suites, held_out, []))
        probes = read_probes(config.probes, prepared.constitution, cases, prepared.prompts)
        return nearly_trained(probes, prepared.constitution, prepared.prompts)

    def cost(self, config: AdherenceConfig, prepared: Prepared) -> Cost:
        whole, cases = prepared.config, direct_cases(prepared)
        [(field, engine)] = whole.feedback_engines("preferences").items()
        own = labeller_of_replies(whole.preferences.labeller, engine, prepared.constitution, whole.seed)
        knows_more = own is None or not own.knows_only_declining
        rules = [rule for rule in prepared.constitution.principles if rule.weight > 0]
        calls: list[WriteAsk] = []
        if config.probes is not None:
            probes = read_probes(config.probes, prepared.constitution, asked_directly(cases), prepared.prompts)
            num_new = len({probe.case_id for probe in probes} - {case.id for case in cases})
        else:
            if can_write(knows_more, whole.preferences.asks_labeller, whole.preferences.labeller):
                number = min(config.num_written, config.num_probes)
                asked = written_probes.asks(prepared.constitution, prepared.prompts, number, whole.seed)
                calls = [ask for mine in asked.values() for ask in mine]
            num_new = sum(ask.num_wanted for ask in calls)
        each = min(config.num_probes, len(cases) + num_new)
        if not knows_more:
            each = min(NUM_CHECKED, each) if whole.preferences.asks_labeller else 0
            rules = [rule for rule in rules if is_judged(rule)]
        questions = sum(num_questions(own, Reply(rule, SPECIMEN, "A reply.")) for rule in rules)
        models, most = models_of(prepared), whole.evaluate.max_reply_tokens
        answers = cost_of_choices(engine, each * len(models) * questions, tokens_per_case(cases) + 2 * most)
        writing = written_probes.cost(calls, prepared.prompts, engine) if calls else Cost()
        replies = written_probes.cost_of_replies(num_new, models, most)
        return Cost.of_roles({field: Cost.sum((answers, writing)), "policy_engine": replies})

    def answer(self, config: AdherenceConfig, material: Material) -> AdherenceFindings:
        context = material.context
        own = labeller_of_replies(context.labeller, context.engine, context.constitution, context.seed)
        knows_more = own is None or not own.knows_only_declining
        writes = can_write(knows_more, context.labels == "labeller", context.labeller)
        probes, verdicts = probed(material, config.probes, config.num_probes, config.num_written if writes else 0)
        write_records(context.out / FILE, probes)
        rules = {rule.id: rule for rule in material.constitution.principles}
        judged = [probe for probe in probes if is_judged(rules[probe.principle_id])]
        if not knows_more and not judged:
            raise NotMeasuredError(
                f"the labeller {context.labeller.kind} knows only whether a reply declines, and no principle that is "
                "tested is tagged harmlessness or helpfulness"
            )
        who, labelled = "", dict[str, dict[str, Scores]]()
        if knows_more or context.labels == "labeller":
            who, labelled = _by_labeller(probes if knows_more else first_of_each(judged), verdicts, material)
        outcomes = by_principle(
            {
                (probe.principle_id, model, probe.case_id): by_outcome(rules[probe.principle_id], verdict)
                for probe in judged
                for model, verdict in verdicts[probe.case_id].items()
            }
        )
        models, confidence = list(material.models), material.confidence
        agreement, kappa = agree(labelled, outcomes, confidence, {p.case_id for p in probes if p.source == "written"})
        return AdherenceFindings(
            **_tested(probes, material),
            labeller_knows_more=knows_more,
            by_labeller=kept(who, labelled, models, confidence),
            by_outcome=kept(_judges(judged or probes, verdicts), outcomes, models, confidence),
            agreement=agreement,
            kappa=kappa,
        )


def can_write(knows_more: bool, labels: bool, labeller: LabellerConfig) -> bool:
    """Whether the engine of a labeller writes requests.

    Args:
        knows_more: than whether a reply declines.
        labels: the labels of the run are its own.
    """
    return knows_more and labels and reads_choices(labeller)


def _judges(probes: Sequence[Probe], verdicts: Mapping[str, Mapping[str, Verdict]]) -> str:
    """The judge of the evaluation, and that of the requests that it did not ask."""
    names = {probe.source != "drawn": verdict.judge for probe in probes for verdict in verdicts[probe.case_id].values()}
    if len(set(names.values())) < 2:
        return next(iter(names.values()))
    return f"{names[False]}, for requests outside the evaluation {names[True]}"


def _by_labeller(
    probes: Sequence[Probe], verdicts: Mapping[str, Mapping[str, Verdict]], material: Material
) -> tuple[str, dict[str, dict[str, Scores]]]:
    """(who answered, its scores of every model's replies to these probes)."""
    rules = {rule.id: rule for rule in material.constitution.principles}
    asked = {
        (probe.principle_id, model, probe.case_id): Reply(rules[probe.principle_id], verdict.case.prompt, verdict.reply)
        for probe in probes
        for model, verdict in verdicts[probe.case_id].items()
    }
    who, logits = log_odds({"/".join(key): reply for key, reply in asked.items()}, material.context)
    return who, by_principle({key: as_score(logits["/".join(key)]) for key in asked})


def _tested(probes: Sequence[Probe], material: Material) -> dict[str, Any]:
    number = {
        rule.id: sum(probe.principle_id == rule.id for probe in probes) for rule in material.constitution.principles
    }
    rules = material.constitution.principles
    return {
        "principles": [Probed(id=r.id, title=r.title, num_probes=number[r.id]) for r in rules if number[r.id]],
        "num_by_source": dict(Counter({probe.case_id: probe.source for probe in probes}.values())),
        "not_tested": [r.title for r in rules if r.weight > 0 and not number[r.id]],
    }
