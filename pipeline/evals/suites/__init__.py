"""The suites, in the order of the table. To add a suite, write one class and import its module below."""

from pipeline.evals.suites import red_team, over_refusal, helpfulness, bias, pairs  # noqa: F401, I001  (in this order)
