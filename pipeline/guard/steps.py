"""The two steps of a guard: linear probes on hidden states that say the log-odds of harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evals.probe import classifier_of_states, cross_validated

FOUND = 0.95  # of the harmful training rows, the share that the first step must send on to the second


@dataclass(frozen=True)
class Step:
    """Log-odds of harm: ``weights`` · state + ``bias``, for states of one layer (its number, from 1); the second step
    adds ``carried`` times the log-odds of the first."""

    layer: int
    weights: NDArray[np.float32]
    bias: float
    carried: float = 0.0

    def log_odds(self, states: NDArray[np.float32], before: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
        """(n,) for states of shape (n, hidden). ``before``: the log-odds of the first step, for each or for all."""
        own = states.astype(np.float64) @ self.weights.astype(np.float64) + self.bias
        return own + self.carried * np.asarray(before, dtype=np.float64)


@dataclass(frozen=True)
class Fitted:
    """A step, with the log-odds that it gave to rows which it had not learned, (n,), and their AUC."""

    step: Step
    held_out: NDArray[np.float64]
    auc: float


def fit_step(
    states: NDArray[np.float32],
    harmful: NDArray[np.bool_],
    groups: Sequence[str],
    layers: Sequence[int],
    seed: int,
    before: NDArray[np.float64] | None = None,
) -> Fitted:
    """A standardised logistic regression on the layer with the highest AUC by cross-validation.

    Its scores become log-odds by a second logistic regression on the scores of rows that were not learned (Platt 1999),
    so that both steps have one scale. For the second step, that regression also reads the log-odds of the first
    (stacking, Wolpert 1992), so what the end of the request tells is not lost in the reply.

    Args:
        states: (n, layers, hidden).
        harmful: (n,).
        groups: of each row; no group is both learned and tested.
        layers: the number of each layer in ``states``.
        before: (n,) log-odds of the first step, which had not learned these rows; None for the first step itself.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    held_out, aucs = cross_validated(states, harmful, groups, seed)
    best = int(np.argmax(aucs))
    scaler, regression = (part for _, part in classifier_of_states().fit(states[:, best], harmful).steps)
    scores = np.column_stack([held_out[best]] if before is None else [held_out[best], before])
    platt = LogisticRegression(C=1e6).fit(scores, harmful)
    (slope, *carried), shift = platt.coef_[0].tolist(), float(platt.intercept_[0])
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    step = Step(layers[best], (slope * weights).astype(np.float32), slope * bias + shift, *carried)
    log_odds = platt.decision_function(scores)
    return Fitted(step, log_odds, float(roc_auc_score(harmful, log_odds)))


def gate_of(harmful: NDArray[np.float64]) -> float:
    """The log-odds of the first step above which the second is asked: ``FOUND`` of the (n,) harmful rows that the first
    step had not learned are above it."""
    return float(np.quantile(harmful, 1 - FOUND))


def alarm_scores(
    request: NDArray[np.float64], replies: Sequence[NDArray[np.float64]], gate: float
) -> NDArray[np.float64]:
    """(n,) one number for both steps: the highest log-odds of harm that the guard sees while a reply is written.

    One threshold on it is a threshold on both steps, so one bound holds for both together.

    Args:
        request: (n,) log-odds by the first step.
        replies: for each row, (checks,) log-odds by the second step, which is asked only above ``gate``.
    """
    highest = np.array([max(checks, default=-np.inf) for checks in replies])
    return np.where(request > gate, np.maximum(request, highest), request)
