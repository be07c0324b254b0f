"""How texts and numbers stand on the page; everything from outside is escaped."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

CODE = re.compile(r"`([^`]+)`")


def said(text: str) -> Markup:
    """A text with commands between backquotes: those become code, the rest is escaped."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))


def breakable(name: str) -> Markup:
    """A name or path that may be broken after its parts."""
    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(name))))


def signed(value: float, digits: int) -> str:
    """A number with a minus sign that is one."""
    return f"{value:.{digits}f}".replace("-", "−")


def figure_text(value: float | None) -> str:
    """A figure as it stands in tables."""
    return "–" if value is None else signed(value, 4)
