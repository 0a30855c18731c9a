"""Fill a template; HTML is escaped, Markdown tables are not broken by what models write."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.progress import duration
from pipeline.report.plots import interval_svg, loss_svg


def render(template: str, report: Any) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(duration=duration, number=_number, cell=_cell, quote=_quote)
    environment.globals.update(interval_svg=interval_svg, loss_svg=loss_svg)
    return environment.get_template(template).render(report=report)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:d}" if isinstance(value, int) else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _quote(text: str) -> str:
    """A Markdown block quote, so that headings and lists in a reply stay the reply's."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
