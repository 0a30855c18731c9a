"""A guard and its files: ``guard.json`` and ``guard.safetensors``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, NotMeasuredError
from pipeline.guard.reading import Reading, read
from pipeline.guard.results import GuardCard
from pipeline.guard.rows import Row
from pipeline.guard.steps import Step, alarm_scores
from pipeline.records import Message

if TYPE_CHECKING:
    from pipeline.engines.states import Reader

FOLDER = "guard"
CARD, WEIGHTS = "guard.json", "guard.safetensors"
FORMAT = 1
ASKED = "What is the capital of France, and which river flows through it?"
MAX_DIFFERENCE = 0.05  # of the state for ASKED, relative: bf16 changes it by 0.013, SFT weights are 0.13 away


@dataclass(frozen=True)
class Guard:
    """Fires if the log-odds of harm are above ``threshold``: of the request, or, where the request's are above
    ``gate``, of the reply so far, which is read after every ``every`` tokens."""

    request: Step
    reply: Step | None
    gate: float
    threshold: float
    """Infinite: it never fires, and ``card.idle`` says why."""
    every: int
    refusal: str
    fingerprint: NDArray[np.float32]
    """(hidden,) the model's state in the first step's layer for ``ASKED``: it tells whether a model is the guard's."""
    card: GuardCard

    @property
    def layers(self) -> list[int]:
        """The layers whose states it reads: the first step's, then the second step's."""
        return [self.request.layer, (self.reply or self.request).layer]

    def scores(self, readings: Sequence[Reading]) -> NDArray[np.float64]:
        """(n,) alarm scores; NaN for states that can't be used. The states are those of ``layers``."""
        requests = self.request_log_odds(readings)
        empty = np.zeros(0)
        replies = [
            self.reply.log_odds(reading.reply[:, 1], before) if self.reply else empty
            for reading, before in zip(readings, requests, strict=True)
        ]
        scores = alarm_scores(requests, replies, self.gate)
        return np.where([reading.usable for reading in readings], scores, np.nan)

    def request_log_odds(self, readings: Sequence[Reading]) -> NDArray[np.float64]:
        """(n,) log-odds by the first step alone."""
        if not readings:
            return np.zeros(0)
        return self.request.log_odds(np.stack([reading.request[0] for reading in readings]))

    def check_model(self, reader: Reader) -> None:
        """Check that a model is the one that the guard was made for.

        Raises:
            ConfigError: its states are others.
        """
        found = fingerprint_of(reader, self.request.layer) if self.card.num_layers == num_layers(reader) else None
        if found is None or found.shape != self.fingerprint.shape or self._differs(found):
            raise ConfigError(
                f"the guard was made for another model ({self.card.model}); give the checkpoint of the run that made "
                "it, or make a guard for this model with cai run guard.enabled=true."
            )

    def _differs(self, found: NDArray[np.float32]) -> bool:
        distance = np.linalg.norm(found - self.fingerprint) / np.linalg.norm(self.fingerprint)
        return not distance <= MAX_DIFFERENCE

    def save(self, folder: Path) -> None:
        """Write it as JSON and safetensors."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"request": self.request.weights, "fingerprint": self.fingerprint}
        arrays |= {"reply": self.reply.weights} if self.reply else {}
        save_file(arrays, folder / WEIGHTS)
        steps = {name: step for name, step in (("request", self.request), ("reply", self.reply)) if step}
        written = {
            "format": FORMAT,
            "steps": {
                name: {"layer": step.layer, "bias": step.bias, "carried": step.carried} for name, step in steps.items()
            },
            "gate": self.gate,
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "every": self.every,
            "refusal": self.refusal,
            "card": self.card.model_dump(mode="json"),
        }
        (folder / CARD).write_text(json.dumps(written, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Guard:
        """Read it.

        Raises:
            ConfigError: there is no guard in the folder, it is damaged, or it is of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder).expanduser()
        if not (folder / CARD).is_file():
            raise ConfigError(f"there is no guard in {folder}; make one with cai run guard.enabled=true.")
        try:
            read = json.loads((folder / CARD).read_text(encoding="utf-8"))
            if read.get("format") != FORMAT:
                raise ConfigError(
                    f"the guard in {folder} is of format {read.get('format')}, and this version reads {FORMAT}; make "
                    "it again with cai run guard.enabled=true."
                )
            arrays = load_file(folder / WEIGHTS)
            steps = {name: Step(weights=arrays[name], **one) for name, one in read["steps"].items()}
            return cls(
                request=steps["request"],
                reply=steps.get("reply"),
                gate=read["gate"],
                threshold=math.inf if read["threshold"] is None else read["threshold"],
                every=read["every"],
                refusal=read["refusal"],
                fingerprint=arrays["fingerprint"],
                card=GuardCard.model_validate(read["card"]),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            reason = type(error).__name__
            raise ConfigError(
                f"the guard in {folder} is damaged ({reason}); make it again with cai run guard.enabled=true."
            ) from None


def num_layers(reader: Reader) -> int:
    from pipeline.engines.states import layers_of

    return len(layers_of(reader.model))


def fingerprint_of(reader: Reader, layer: int) -> NDArray[np.float32]:
    """(hidden,) the state for ``ASKED``. Raises NotMeasuredError if it has no finite numbers."""
    asked = [Message(role="user", content=ASKED)]
    row = Row(id="fingerprint", messages=asked, request=ASKED, harmful=False, group="", pool="ordinary")
    [reading] = read(reader, [row], [layer], every=1)
    if not reading.usable:
        raise NotMeasuredError("the model's states are no finite numbers in its precision")
    return reading.request[0]
