"""Judges of replies and of pairs of replies. To add a judge, write one class and import its module below."""

from pipeline.evals.judges import patterns, model, endpoint, classifier  # noqa: F401, I001  (in this order)
