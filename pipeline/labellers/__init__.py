"""Labellers: they say which of two replies is better (AI feedback). Importing this package registers all of them."""

from pipeline.labellers import channel, choice, likelihood, pointwise, request  # noqa: F401
