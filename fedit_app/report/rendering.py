"""Fills the templates of the HTML pages: text of other nodes is escaped, drawings are not."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from fedit_app.report.figures import value_of, words
from fedit_app.report.styles import STYLES
from fedit_app.report.template import TEMPLATES
from fedit_app.support.formats import byte_size, duration, printable, share


def render(template: str, plots: Mapping[str, str], **values: object) -> str:
    """One of the templates, filled in.

    Args:
        template: its name.
        plots: name -> SVG, which escapes its own text.
        values: name -> what the template shows; all text in it is escaped.
    """
    drawings = {name: Markup(drawing) for name, drawing in plots.items()}
    page = _environment().get_template(template)
    return page.render(styles=Markup(STYLES), plots=drawings, **values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=DictLoader(TEMPLATES),
        finalize=lambda value: (
            printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    environment.globals.update(
        share=share,
        byte_size=byte_size,
        duration=duration,
        value_of=value_of,
        words=words,
        setting=_setting,
        at=lambda record, name: getattr(record, name, None),
    )
    return environment


def _setting(value: object) -> str:
    """A configuration value as it is written in TOML, strings without their quotes."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
