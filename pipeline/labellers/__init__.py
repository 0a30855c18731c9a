"""AI feedback: who says which of two replies is the better one. A labeller registers itself when it is imported."""

from pipeline.labellers import choice, likelihood, pointwise  # noqa: F401
