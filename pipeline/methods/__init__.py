"""Alignment methods: on labelled comparisons, and by policy gradient. Importing this package registers all of them."""

from pipeline.methods import pairs  # noqa: F401
from pipeline.methods.policy_gradient import grpo, ppo, rloo  # noqa: F401
