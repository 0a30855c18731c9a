"""Alignment methods: on labelled comparisons, and by policy gradient. A new method is one class and one line here."""

from pipeline.methods import dpo, ipo, kto  # noqa: F401
from pipeline.methods.policy_gradient import grpo, ppo, rloo  # noqa: F401
