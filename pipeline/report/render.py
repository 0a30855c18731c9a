"""Fill a template; HTML is escaped, Markdown tables are not broken by what models write."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.core.log import duration
from pipeline.report import explorer, plots, rewards, svg, views, wording
from pipeline.report.build import Report


def render(template: str, report: Report) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        duration=duration,
        number=wording.number,
        words=wording.words,
        percent=wording.percent,
        p_value=wording.p_value,
        cell=_cell,
        quote=_quote,
    )
    environment.globals.update(
        asset=lambda name: _asset(environment, name),
        explorer=explorer,
        json_script=json_script,
        plots=plots,
        rewards=rewards,
        svg=svg,
        views=views,
        wording=wording,
    )
    text = environment.get_template(template).render(report=report)
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, which a server may send, is no text


def json_script(data: Any) -> Markup:
    """JSON that can stand in a ``script`` element: no ``<``, so that no text can end the element or open a comment."""
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _asset(environment: Environment, name: str) -> Markup:
    """A style sheet or script as it is, whatever braces it has."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, f"page/{name}")[0])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _quote(text: str) -> str:
    """A Markdown block quote, so that headings and lists in a reply stay the reply's."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
