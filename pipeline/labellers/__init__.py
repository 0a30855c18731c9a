"""Labellers: they say which of two replies is better (AI feedback). Importing this package registers all of them."""

from pipeline.labellers import choice, likelihood, pointwise  # noqa: F401
