"""Where text and log-probabilities come from. An engine registers itself; importing this package loads all of them."""

from pipeline.engines import local, openai  # noqa: F401
