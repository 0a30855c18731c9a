"""Why did it say that: a reply, which model would have said it, and the training rows that are behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError, NotMeasuredError, StageError
from pipeline.core.log import say
from pipeline.core.memory import free_memory
from pipeline.engines.base import ENGINES, Request, StreamingEngine, open_engine
from pipeline.engines.models import load_model, load_tokenizer, resolve_path
from pipeline.engines.states import memory_errors
from pipeline.evals.judges.refusal import judge_reply
from pipeline.explain.base import Material
from pipeline.explain.influence import Influence, Said, pair_influences, sft_influences
from pipeline.explain.lineage import PairSource, SftSource, pair_source, sft_sources
from pipeline.explain.nearest import similarities
from pipeline.methods.base import AlignConfig, Method
from pipeline.methods.pairs import PairMethod
from pipeline.records import Case, Message, Outcome, Preference, TrainingRow
from pipeline.training.gradients import Trained, token_logprobs

USUAL_OPENING = "I can't"  # where the constitution's refusals don't begin alike
BATCH_ROWS = 64
RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Askable:
    """A finished run, or an evaluation of finished models."""

    name: str
    material: Material
    sft: Trained | None = None
    """The SFT model; None: the run trained nothing."""
    aligned: Trained | None = None
    most_sft_tokens: int = 0
    """``sft.max_length_tokens``."""
    method: Method | None = None
    align: AlignConfig | None = None
    notes: list[str] = field(default_factory=list)
    """What this run can't say, a sentence each."""


@dataclass(frozen=True)
class Asked:
    """A prompt, or a case of the evaluation."""

    messages: list[Message]
    begun: str = ""
    """The beginning of the reply that an attack gives."""
    case: Case | None = None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reply(_Part):
    model: str
    text: str
    ended: bool
    """False: it was cut at the limit of tokens."""
    on_record: bool
    """It is the reply of the evaluation; otherwise it was generated now, greedily."""
    outcome: Outcome | None = None
    """How the evaluation judged it."""


class Leaning(_Part):
    """Log-probabilities per token under one model."""

    model: str
    declining: float | None
    answering: float | None
    """None: the first model's reply is empty."""
    difference: float | None
    """Declining minus answering. Positive: this model rather declines."""
    reply: float | None
    """Of the last model's reply."""


class Candidate(_Part):
    """A training row that the prompt is like. ``influence``: None if it could not be measured for this row."""

    row: SftSource | PairSource
    similarity: float
    influence: Influence | None = None


class Why(_Part):
    """The answer. Candidates are the rows most like the prompt, the most similar first."""

    run: str
    models: list[str]
    case: str | None
    messages: list[Message]
    begun: str
    reply: Reply
    first_reply: Reply
    """Of the first model, which was not trained."""
    declining: str
    """The words for which ``leanings`` gives a log-probability."""
    answering: str
    leanings: list[Leaning]
    answers: bool
    """The reply of the first model answers, so a difference says whether a model rather declines or answers."""
    num_sft_rows: int
    num_pairs: int
    sft: list[Candidate]
    pairs: list[Candidate]
    notes: list[str]


def why(run: Askable, asked: Asked, num_candidates: int, num_read: int) -> Why:
    """Ask the models of a run, and compare the prompt with what they were trained on. Nothing is written to the run.

    Args:
        num_candidates: how many of the most similar rows of each kind get an influence.
        num_read: how many training prompts are compared with the prompt.
    """
    material, notes = run.material, list(run.notes)
    opening = material.constitution.opening() or USUAL_OPENING
    try:
        say("why: the reply")
        reply = _reply(material, material.last, asked)
        first = reply if material.first == material.last else _reply(material, material.first, asked)
        say("why: log-probabilities")
        said = Said(asked.messages, asked.begun, reply.text, reply.ended)
        with memory_errors():
            answering, leanings = _leanings(material, said, opening, first.text)
    except NotMeasuredError as reason:
        raise StageError(f"cai why can't ask the models of {run.name}: {reason}.") from None
    outcome = first.outcome or judge_reply(first.text, asked.messages[-1]["content"])[0]
    if outcome != "complied":
        notes.append(
            f"The reply of {material.first} does not answer either ({outcome}), so the difference does not say whether "
            "a model rather declines or answers."
        )
    sft, pairs = _candidates(run, said, num_candidates, num_read, notes)
    return Why(
        run=run.name,
        models=list(material.models),
        case=None if asked.case is None else asked.case.id,
        messages=asked.messages,
        begun=asked.begun,
        reply=reply,
        first_reply=first,
        declining=opening,
        answering=answering,
        leanings=leanings,
        answers=outcome == "complied",
        num_sft_rows=len(material.rows),
        num_pairs=len(material.preferences),
        sft=sft,
        pairs=pairs,
        notes=notes,
    )


# --- What it says --------------------------------------------------------------------------------------------------


def _reply(material: Material, model: str, asked: Asked) -> Reply:
    """The reply on record, or a greedy one of the model in this process.

    Raises:
        ConfigError: the prompt does not fit the context.
    """
    most = material.context.suites.max_reply_tokens
    if asked.case is not None:
        verdict = next(found for found in material.verdicts[model] if found.case.id == asked.case.id)
        text = verdict.reply.removeprefix(asked.begun).strip()
        ended = verdict.replied and verdict.num_tokens < most
        return Reply(model=model, text=text, ended=ended, on_record=True, outcome=verdict.outcome)
    request = Request(id="why", messages=asked.messages, seed=material.seed, max_new_tokens=most, temperature=0.0)
    with memory_errors():
        engine = open_engine(ENGINES.parse({"kind": "hf"}), material.weights(model), material.context.launch)
        assert not isinstance(engine, StreamingEngine), "it runs in this process"
        [found] = engine.generate([request])
    del engine
    if found.finish == "too_long":
        raise ConfigError(f"PROMPT: with a reply it does not fit the context of {model}; give a shorter one.")
    free_memory()
    return Reply(model=model, text=found.text, ended=found.finish == "stop", on_record=False)


@torch.no_grad()
def _leanings(material: Material, said: Said, opening: str, answer: str) -> tuple[str, list[Leaning]]:
    """The beginning of the answer, with as many tokens as the opening of a refusal; and what each model makes of both,
    and of the whole reply."""
    answering = ""
    leanings: list[Leaning] = []
    for name in material.models:
        weights = material.weights(name)
        path = resolve_path(weights.path)
        revision = None if Path(path).is_dir() else weights.revision
        model = load_model(path, weights.precision, revision).eval()
        chat = Renderer(load_tokenizer(path, revision), model.generation_config.eos_token_id)
        declining_ids, reply_ids = (chat.continued_ids(said.begun, text) for text in (opening, said.reply))
        answering_ids = chat.continued_ids(said.begun, answer)[: len(declining_ids)]
        answering = answering or chat.spelled(answering_ids).strip()
        prompt_ids = chat.prompt_ids(said.messages, said.begun)
        texts = (declining_ids, answering_ids, reply_ids)
        declining, answered, reply = (_per_token(model, prompt_ids, ids) for ids in texts)
        difference = declining - answered if declining is not None and answered is not None else None
        leanings.append(
            Leaning(model=name, declining=declining, answering=answered, difference=difference, reply=reply)
        )
        del model
        free_memory()
    return answering, leanings


def _per_token(model: PreTrainedModel, prompt_ids: list[int], ids: list[int]) -> float | None:
    return float(token_logprobs(model, prompt_ids, ids).mean()) if ids else None


# --- What it was trained on ----------------------------------------------------------------------------------------


def _candidates(
    run: Askable, said: Said, num_candidates: int, num_read: int, notes: list[str]
) -> tuple[list[Candidate], list[Candidate]]:
    """The SFT rows and the comparisons that are most like the prompt, for the model before training: its view of them
    does not come from the rows themselves."""
    material = run.material
    rows, labelled = material.rows, [p for p in material.preferences if p.probability_a is not None]
    prompts = [*(row.messages for row in rows), *(p.comparison.prompt.messages for p in labelled)]
    if not prompts:
        return [], []
    say(f"why: the nearest of {len(rows):,} SFT rows and {len(labelled):,} pairs")
    try:
        found = similarities(material.weights(material.first), said.messages, prompts, num_read, BATCH_ROWS)
    except NotMeasuredError as reason:
        notes.append(f"The nearest training rows were not found: {reason}.")
        return [], []
    near_rows = _most_similar(rows, found[: len(rows)], num_candidates)
    near_pairs = _most_similar(labelled, found[len(rows) :], num_candidates)
    sources = sft_sources([row for row, _ in near_rows], material.exchanges, material.constitution)
    say(f"why: the influence of {len(near_rows)} rows and {len(near_pairs)} pairs")
    of_rows = _measured("SFT rows", len(near_rows), notes, lambda: _of_rows(run, [row for row, _ in near_rows], said))
    of_pairs = _measured("pairs", len(near_pairs), notes, lambda: _of_pairs(run, [row for row, _ in near_pairs], said))
    return (
        [
            Candidate(row=source, similarity=similarity, influence=influence)
            for source, (_, similarity), influence in zip(sources, near_rows, of_rows, strict=True)
        ],
        [
            Candidate(row=pair_source(pair), similarity=similarity, influence=influence)
            for (pair, similarity), influence in zip(near_pairs, of_pairs, strict=True)
        ],
    )


def _most_similar(rows: Sequence[RowT], found: Sequence[float | None], number: int) -> list[tuple[RowT, float]]:
    usable = [(row, similarity) for row, similarity in zip(rows, found, strict=True) if similarity is not None]
    return sorted(usable, key=lambda pair: -pair[1])[:number]


def _measured(
    what: str, number: int, notes: list[str], measure: Callable[[], list[Influence | None]]
) -> list[Influence | None]:
    """The influences; a note and None for each row if they can't be measured."""
    if number == 0:
        return []
    try:
        return measure()
    except NotMeasuredError as reason:
        notes.append(f"The influence of {what} was not measured: {reason}.")
        return [None] * number
    finally:
        free_memory()


def _of_rows(run: Askable, rows: Sequence[TrainingRow], said: Said) -> list[Influence | None]:
    assert run.sft is not None, "only a run that trained has rows"
    material = run.material
    return sft_influences(rows, said, run.sft, material.context.model, material.seed, run.most_sft_tokens)


def _of_pairs(run: Askable, preferences: Sequence[Preference], said: Said) -> list[Influence | None]:
    assert run.aligned is not None and run.align is not None, "only a run that trained has pairs"
    if not isinstance(run.method, PairMethod):
        raise NotMeasuredError(f"{run.align.method} trains on its own samples, and pairs only on a reward model")
    if run.align.rewards:
        raise NotMeasuredError("the labels that it was trained on came from align.rewards, and are not on record")
    material = run.material
    return pair_influences(preferences, said, run.aligned, material.context.model, material.seed, run.method, run.align)
