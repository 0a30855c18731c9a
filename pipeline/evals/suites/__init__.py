"""The suites, in the order of the table. A new one is one class, imported below."""

from pipeline.evals.suites import red_team, over_refusal, helpfulness, bias, pairs  # noqa: F401, I001  (in this order)
