"""As CONTRIBUTING.md says, a method, a labeller and an engine are each added with one class and one line. They run in
the chain here. (A judge and a suite: tests/unit/test_extend_evals.py.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import run
from pipeline.constitution.schema import Principle
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.base import (
    ENGINES,
    Answer,
    AskT,
    Completion,
    Engine,
    EngineConfig,
    EngineKind,
    Query,
    Request,
    Weights,
)
from pipeline.labellers.base import LABELLERS, Labeller, LabellerConfig
from pipeline.methods.base import METHODS
from pipeline.methods.pairs import BothRepliesConfig, PairMethod
from pipeline.records import Comparison, Judgement, Preference, read_records
from pipeline.training.pairs import PairLogprobs

Tiny = Callable[..., Config]


# --- A method: SimPO (Meng et al. 2024, arXiv 2405.14734), which needs no reference ---------------------------------


class SimPO(PairMethod):
    """Raises the mean log-probability of the better reply above that of the other by a margin."""

    name = "simpo"

    class Config(BothRepliesConfig):
        """Simple preference optimisation."""

        method: Literal["simpo"] = "simpo"
        """Simple preference optimisation."""
        gamma: float = Field(default=0.5, ge=0)
        """The margin that the better reply is to win by."""

    def loss(self, pairs: PairLogprobs, labels: Tensor, config: Any) -> Tensor:
        margins = config.beta * (pairs.policy_a / pairs.num_tokens_a - pairs.policy_b / pairs.num_tokens_b)
        logsigmoid = torch.nn.functional.logsigmoid
        return -labels * logsigmoid(margins - config.gamma) - (1 - labels) * logsigmoid(-margins - config.gamma)


# --- A labeller: the shorter reply is better -------------------------------------------------------------------------


class Shorter(Labeller):
    """Prefers the shorter reply and asks nobody."""

    name = "shorter"

    class Config(LabellerConfig):
        """The shorter reply wins."""

        kind: Literal["shorter"] = "shorter"
        """The shorter reply wins."""

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        return []

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement:
        difference = len(comparison.reply_b) - len(comparison.reply_a)
        return Judgement(principle_id=principle.id, logit=self._config.logit_scale * difference)


# --- An engine: says the same to everyone ----------------------------------------------------------------------------


class Parrot(EngineKind):
    """Gives one reply to every request."""

    name = "parrot"

    class Config(EngineConfig):
        """One reply to every request."""

        kind: Literal["parrot"] = "parrot"
        """One reply to every request."""
        reply: str = "I will not do that."
        """The reply."""

        @property
        def model_name(self) -> str:
            return "parrot"

    @staticmethod
    def open(config: Any, weights: Weights, launch: LaunchConfig) -> Engine:
        return ParrotEngine(config.reply)


class ParrotEngine:
    name = "parrot"

    def __init__(self, reply: str) -> None:
        self._reply = reply

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        return [list(asks)]

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        return [Completion(id=r.id, text=self._reply, num_tokens=6, finish="stop") for r in batch]

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        return [Answer(id=query.id, logprobs=[-0.5, -1.5]) for query in batch]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    METHODS.add(SimPO)
    LABELLERS.add(Shorter)
    ENGINES.add(Parrot)
    yield
    METHODS.remove("simpo")
    LABELLERS.remove("shorter")
    ENGINES.remove("parrot")


def test_a_toy_method_labeller_and_engine_run_through_the_chain(tiny: Tiny):
    overrides = [
        "align.method=simpo",
        "align.gamma=0.3",
        "preferences.labeller.kind=shorter",
        "engine.kind=parrot",
        "engine.reply=No.",
        "until=align",
    ]
    result = run(tiny(*overrides))
    preferences = list(read_records(result.folder / "4-preferences" / "preferences.jsonl", Preference))
    labelled = [p for p in preferences if p.labeller == "shorter:parrot"]
    assert labelled
    for preference in labelled:
        pair, label = preference.comparison, preference.probability_a
        assert label is not None and (label > 0.5) == (len(pair.reply_a) < len(pair.reply_b))
    critiques = (result.folder / "2-critique" / "exchanges.jsonl").read_text(encoding="utf-8")
    assert '"critic":"parrot"' in critiques and '"revision":"No."' in critiques
    align = result.stages["align"].manifest
    assert align.fields["config"]["gamma"] == 0.3 and align.metrics["num_steps"] > 0
    assert (result.folder / "checkpoint" / "model.safetensors").exists()


def test_an_engine_is_asked_once_before_a_run_that_needs_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    monkeypatch.setattr(Parrot.Config, "reach", lambda self, field, reads_choices: asked.append(field))
    config = tiny("engine.kind=parrot", "preferences.labeller.kind=shorter", "until=preferences")
    plan(preflight(config))
    assert asked == [], "a plan needs no server"
    run(config)
    assert asked == ["engine"]
    run(config)
    assert asked == ["engine"], "finished stages need no server"

    def refuse(self: EngineConfig, field: str, reads_choices: bool) -> None:
        raise ConfigError(f"{field} is dead.")

    monkeypatch.setattr(Parrot.Config, "reach", refuse)
    before = sorted((tmp_path / "outputs" / "cache").iterdir())
    with pytest.raises(ConfigError, match=r"^engine is dead\.$"):
        run(tiny("engine.kind=parrot", "preferences.labeller.kind=shorter", "until=preferences", "seed=3"))
    assert sorted((tmp_path / "outputs" / "cache").iterdir()) == before


def test_the_loss_by_hand():
    ones = torch.ones(1)
    pairs = PairLogprobs(
        policy_a=-2 * ones,
        policy_b=-6 * ones,
        reference_a=ones,
        reference_b=ones,
        num_tokens_a=2 * ones,
        num_tokens_b=3 * ones,
        opening_a=-ones,
        opening_b=-ones,
    )
    config = SimPO.Config(num_epochs=1, learning_rate=1e-3, global_batch_size=2, max_length_tokens=64, beta=2.0)
    expected = -torch.nn.functional.logsigmoid(torch.tensor(2.0 * (-1 - -2) - 0.5))
    assert SimPO().loss(pairs, ones, config).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("align=dpo align.method=simpo align.gama=1", "align.gama: unknown key; did you mean 'gamma'?"),
        (
            "engine.kind=parrot preferences.labels=labeller",
            "preferences.labeller.kind is 'likelihood' but engine.kind is 'parrot'",
        ),
        ("policy_engine.kind=parrot", "policy_engine.kind is 'parrot' with the model "),
        ("preferences.labeller.kind=shorter preferences.labeller.num_examples=2", "num_examples: unknown key"),
    ],
)
def test_what_they_can_do_and_read_is_checked(overrides: str, expected: str):
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides.split())
    assert expected in str(caught.value)


def test_the_reference_of_settings_knows_them(tmp_path: Path):
    from pipeline.chain.reference import reference

    assert "The margin that the better reply is to win by." in reference("align")
    assert "## engine.kind=parrot" in reference("engine")
