"""Layouts of public sets, one reading function for each. Importing this package registers all of them."""

from pipeline.data.layouts import bias, pairs, rated, requests  # noqa: F401
