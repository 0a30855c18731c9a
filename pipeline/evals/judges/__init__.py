"""Who decides what a reply did, and which of two replies is better. A new judge is one class, imported below."""

from pipeline.evals.judges import patterns, model, endpoint, classifier  # noqa: F401, I001  (in this order)
