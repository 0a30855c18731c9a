"""Fill a template. HTML is escaped, and texts of models can't break Markdown tables."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.core.log import duration
from pipeline.report import (
    attacked,
    explorer,
    guarded,
    knows,
    labels,
    left_out,
    plots,
    rewards,
    second_judge,
    svg,
    views,
    wording,
)
from pipeline.report.build import Report
from pipeline.report.explained import all as explained


def render(template: str, report: Report) -> str:
    return fill(
        template,
        report=report,
        attacked=attacked,
        explained=explained,
        explorer=explorer,
        guard_card=guarded,
        knows=knows,
        labels_card=labels,
        left_out=left_out,
        plots=plots,
        rewards=rewards,
        second_judge=second_judge,
        svg=svg,
        views=views,
    )


def fill(template: str, **values: Any) -> str:
    """The text of a template with these values."""
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
        cell=cell,
        quote=_quote,
    )
    environment.globals.update(
        asset=lambda name: _asset(environment, name), json_script=json_script, wording=wording, **values
    )
    text = environment.get_template(template).render()
    return text.encode("utf-8", "replace").decode()  # a server may send half a surrogate pair, which can't be encoded


def json_script(data: Any) -> Markup:
    """JSON for a ``script`` element. It has no ``<``, so no text can end the element or start a comment."""
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _asset(environment: Environment, name: str) -> Markup:
    """The unchanged text of a style sheet or script; Jinja does not read its braces."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, f"page/{name}")[0])


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _quote(text: str) -> str:
    """A Markdown block quote, so that headings and lists in a reply stay inside it."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
