"""Prompts that a model writes: what it is asked, what is read of its answers, and what is kept of that."""
