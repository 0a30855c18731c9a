"""The prompts that ship with the project, and readers for other data."""
