"""The prompts that ship with the project, and how any others are read."""
