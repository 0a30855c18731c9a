"""Engines: they generate text and compute log-probabilities. Importing this package registers all of them."""

from pipeline.engines import local, server, vllm  # noqa: F401
