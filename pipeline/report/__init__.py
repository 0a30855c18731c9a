"""The report of a run, the model card, and the comparison of runs."""
