"""Alignment methods, on labelled comparisons or by policy gradient. To add one, write a class and import it here."""

from pipeline.methods import cpo, decide, dpo, ipo, kto  # noqa: F401
from pipeline.methods.policy_gradient import grpo, ppo, rloo  # noqa: F401
