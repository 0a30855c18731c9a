"""The chain as a whole: its configuration, its order of stages, its runs and its cost."""
