"""Families of transforms, their split into those that train and those that evaluate, and compositions of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.adversary import rewriting as text
from pipeline.adversary import scenes
from pipeline.evals.suites.attacks import ATTACKS
from pipeline.evals.suites.families import PREFILL, is_trained_on
from pipeline.records import Message, derive_seed

TEMPLATE = "families-1"  # part of the cache keys; change it with a wording (a golden test reminds)
Transform = Callable[[str, random.Random], list[Message]]
"""(request, rng) → conversation. A pure function: the same rng gives the same conversation."""


def _fixed(name: str) -> Transform:
    """One of the fixed attacks, which draw nothing."""
    return lambda request, rng: ATTACKS[name](request)


FAMILIES: Mapping[str, Mapping[str, Transform]] = MappingProxyType(
    {
        "persona": {"vex": _fixed("persona"), "mirror": scenes.mirror_persona, "grandmother": scenes.grandmother},
        "fiction": {"novel": _fixed("fiction"), "screenplay": scenes.screenplay, "game": scenes.game_world},
        "encoding": {
            "base64": _fixed("base64"),
            "rot13": _fixed("rot13"),
            "leetspeak": text.leetspeak,
            "spaced": text.spaced_letters,
            "reversed": text.reversed_words,
        },
        "noise": {
            "misspelling": _fixed("misspelling"),
            "capitals": text.capitals,
            "shuffled": text.shuffled_letters,
            "letters": text.noisy_letters,
        },
        "tense": {"past": _fixed("past_tense"), "future": text.future_tense},
        "register": {"slang": text.in_slang, "formal": text.in_formal_words},
        "language": {"other": text.in_language},
        "refusal_suppression": {"rules": _fixed("refusal_suppression"), "first_words": scenes.first_words},
        "system_override": {"maintenance": _fixed("system_override"), "audit": scenes.audit},
        PREFILL: {"sure": _fixed("prefix_injection"), "begun": scenes.begun_reply},
        "many_shot": {"harmless": _fixed("many_shot")},
        "escalation": {"promise": _fixed("escalation"), "general_first": scenes.general_first},
        "payload_splitting": {"variables": text.variables, "masked": text.masked_words},
        "format": {"table": text.as_table, "code": text.as_code, "outline": text.as_outline},
        "authority": {"professional": scenes.professional, "public": scenes.already_public},
    }
)


def training_families() -> list[str]:
    return [family for family in FAMILIES if is_trained_on(family)]


def evaluation_families() -> list[str]:
    """Those that nothing is trained on, unless the settings name them."""
    return [family for family in FAMILIES if not is_trained_on(family)]


@dataclass(frozen=True)
class Composition:
    """Several transforms, one after another. ``steps`` are names such as ``noise.capitals``."""

    steps: tuple[str, ...]
    seed: int

    @property
    def families(self) -> list[str]:
        return [family_of(step) for step in self.steps]

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """The dialogue with its last turn, the request, under all transforms. The same seed draws the same again, so a
        harmless request can get exactly what a harmful one got."""
        *before, last = messages
        turns = text.user(last["content"])
        for number, step in enumerate(self.steps):
            family, _, name = step.partition(".")
            turns = _applied(FAMILIES[family][name], turns, random.Random(derive_seed(self.seed, number, step)))
        systems = [turn for turn in turns if turn["role"] == "system"]
        return [*systems, *before, *(turn for turn in turns if turn["role"] != "system")]


def family_of(step: str) -> str:
    return step.partition(".")[0]


def _applied(transform: Transform, turns: Sequence[Message], rng: random.Random) -> list[Message]:
    """Apply a transform to the last turn of the person; what was put around it stays. One beginning of a reply is kept,
    the newest."""
    at = max(place for place, turn in enumerate(turns) if turn["role"] == "user")
    made = transform(turns[at]["content"], rng)
    after = [] if made[-1]["role"] == "assistant" else list(turns[at + 1 :])
    return [*turns[:at], *made, *after]


def draw(families: Sequence[str], rng: random.Random, seed: int) -> Composition:
    """One transform of each of these families, in this order."""
    return Composition(tuple(f"{family}.{rng.choice(sorted(FAMILIES[family]))}" for family in families), seed)
