"""Which training prompts a model sees as most like a prompt: the cosine of its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from pipeline.engines.base import Weights
from pipeline.engines.states import prompt_states
from pipeline.records import Message, derive_seed, dialogue_text

NUM_LAYERS = 5  # are read, and the last but one is used; see docs/why.md
NUM_DRAWN = 60  # prompts drawn from all, whose mean is the centre


def similarities(
    weights: Weights, asked: Sequence[Message], prompts: Sequence[Sequence[Message]], num_read: int, batch_rows: int
) -> list[float | None]:
    """How similar each prompt is to the asked one, from -1 to 1, about four fifths up in the model.

    Reading all states may take minutes, so those prompts are read that are most like it in their letters.

    Args:
        num_read: how many of them.

    Returns:
        for each prompt, None if it was not read, or does not fit the context.

    Raises:
        NotMeasuredError: the states can't be read.
    """
    unique = {dialogue_text(prompt): prompt for prompt in prompts}
    alike = most_alike(dialogue_text(asked), list(unique), num_read)
    by_chance = sorted(unique, key=lambda text: derive_seed("centre", text))[:NUM_DRAWN]
    drawn = by_chance if len(alike) < len(unique) else []
    read = [*alike, *drawn]
    states = prompt_states(weights, [asked, *(unique[text] for text in read)], batch_rows, NUM_LAYERS)
    values = states.values[:, max(0, len(states.layers) - 2)]
    centre = np.nanmean(values[-len(drawn) :] if drawn else values[1:], axis=0)
    cosines = dict(zip(read, centred_cosines(values[0], values[1:], centre).tolist(), strict=True))
    found = [cosines.get(dialogue_text(prompt), np.nan) for prompt in prompts]
    return [None if np.isnan(cosine) else cosine for cosine in found]


def most_alike(text: str, others: Sequence[str], number: int) -> list[str]:
    """The texts that share most sequences of three to five letters with a text, weighted by how rare these are."""
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit_transform([text, *others])
    shared = (vectors[1:] @ vectors[0].T).toarray()[:, 0]
    return [others[place] for place in np.argsort(-shared, kind="stable")[:number]]


def centred_cosines(
    asked: NDArray[np.float32], others: NDArray[np.float32], centre: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The cosine of a state (hidden,) with each of (n, hidden), after the centre is taken off: (n,).

    The centre is what every prompt has, such as the system prompt; without this, all cosines are near 1. A state that
    equals it has cosine 0. A state with NaN has NaN.
    """
    mine, theirs = asked.astype(np.float64) - centre, others.astype(np.float64) - centre
    norms = np.linalg.norm(mine) * np.linalg.norm(theirs, axis=1)
    return np.divide(theirs @ mine, norms, out=np.zeros_like(norms), where=norms != 0)
