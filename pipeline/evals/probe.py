"""A linear probe: which requests a model's hidden states tell to be harmful. It is fitted on training prompts alone.

scikit-learn is imported inside functions: its import takes a second, and reading a configuration imports this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.records import POOLS, Prompt, derive_seed

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

NUM_FOLDS = 5
MIN_PROMPTS = 20  # of each class, without counting twins of one request twice
STRENGTH = 0.01  # C of the logistic regression: states have more dimensions than there are prompts


class ProbeConfig(Settings):
    """The card ``knows / does``: a linear probe on the first model's states beside what the models refuse."""

    enabled: bool = True
    """Whether it is measured. It loads the first model with transformers, whatever the policy engine is."""
    num_prompts: int = Field(default=200, ge=MIN_PROMPTS)
    """How many training prompts of each pool the probe learns from, at most."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe. ``layer`` is a place in the states that it was fitted on.

    Requests with a score of at least ``threshold`` are taken for harmful. ``aucs`` has one value for each layer, by
    cross-validation on the training prompts.
    """

    layer: int
    threshold: float
    aucs: list[float]
    classifier: Pipeline

    def scores(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) scores for states of shape (n, layers, hidden)."""
        return np.asarray(self.classifier.decision_function(states[:, self.layer]))


def training_prompts(prompts: Sequence[Prompt], evaluated: Sequence[Prompt], num: int, seed: int) -> list[Prompt]:
    """At most ``num`` prompts of each pool from the training split, chosen by hash: twins come with their request.

    What is evaluated is left out, and so are its twins. (A twin in a held-out manner is in another split.)
    """
    keys, groups = {prompt.key for prompt in evaluated}, {group_of(prompt) for prompt in evaluated}
    free = [p for p in prompts if p.split == "train" and p.key not in keys and group_of(p) not in groups]
    chosen: list[Prompt] = []
    for pool in POOLS:
        mine = [prompt for prompt in free if prompt.pool == pool]
        chosen += sorted(mine, key=lambda p: (derive_seed(seed, "probe", group_of(p)), p.id))[:num]
    return chosen


def group_of(prompt: Prompt) -> str:
    """The same for a harmful request and its twins: no fold may be tested on a request whose twin it has learned."""
    return prompt.twin_of or prompt.id


def refuse_too_few(prompts: Sequence[Prompt]) -> None:
    """Raise NotMeasuredError if the harmful or the harmless prompts are too few for the folds."""
    for name, harmful in (("harmful", True), ("harmless", False)):
        number = len({group_of(prompt) for prompt in prompts if is_harmful(prompt) is harmful})
        if number < MIN_PROMPTS:
            raise NotMeasuredError(
                f"the training split has {number} {name} requests that can be used, and {MIN_PROMPTS} are needed"
            )


def is_harmful(prompt: Prompt) -> bool:
    return prompt.pool == "red_team"


def fit_probe(states: NDArray[np.float32], harmful: NDArray[np.bool_], groups: Sequence[str], seed: int) -> Probe:
    """Fit a logistic regression on each layer's standardised states, and keep the layer with the highest AUC.

    The AUC and the threshold come from predictions for prompts that were not learned (5 folds, twins in one fold). At
    the threshold, the probe misses the same share of harmful training prompts as it takes harmless ones for harmful.

    Args:
        states: (num_prompts, layers, hidden).
        harmful: (num_prompts,)
        groups: of each prompt; see ``group_of``.
    """
    held_out, aucs = cross_validated(states, harmful, groups, seed)
    best = int(np.argmax(aucs))
    classifier = classifier_of_states().fit(states[:, best], harmful)
    return Probe(layer=best, threshold=equal_errors(harmful, held_out[best]), aucs=aucs, classifier=classifier)


def cross_validated(
    states: NDArray[np.float32], harmful: NDArray[np.bool_], groups: Sequence[str], seed: int
) -> tuple[NDArray[np.float64], list[float]]:
    """Scores of prompts that were not learned, (layers, num_prompts), and the AUC of each layer. Arguments as in
    ``fit_probe``."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict

    splits = folds(harmful, groups, seed)
    held_out = np.array(
        [
            cross_val_predict(classifier_of_states(), states[:, layer], harmful, cv=splits, method="decision_function")
            for layer in range(states.shape[1])
        ]
    )
    return held_out, [float(roc_auc_score(harmful, scores)) for scores in held_out]


def equal_errors(harmful: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """The threshold at which the same share of the harmful ones is below it as of the others is not.

    Args:
        harmful, scores: (n,) each.
    """
    from sklearn.metrics import roc_curve

    taken, found, thresholds = roc_curve(harmful, scores)
    return float(thresholds[int(np.argmin(np.abs(1 - found - taken)))])


def folds(harmful: NDArray[np.bool_], groups: Sequence[str], seed: int) -> list[tuple[NDArray, NDArray]]:
    """(indices to learn, indices to test) of each fold. A group is never in both."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed % 2**32)
    return list(splitter.split(np.zeros(len(harmful)), harmful, groups))


def classifier_of_states() -> Any:
    """A logistic regression on standardised states, not fitted yet."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
