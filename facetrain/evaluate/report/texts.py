"""How texts and numbers stand on the page; everything from outside is escaped."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

CODE = re.compile(r"`([^`]+)`")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
SHORT = 9  # characters that fit below a photograph on a phone


def said(text: str) -> Markup:
    """A text with commands between backquotes: those become code, the rest is escaped."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))


def breakable(name: str) -> Markup:
    """A name or path that may be broken after its parts, but not within the end of a file's name: that number and
    suffix, or a long one's suffix alone, are read as one."""
    *parts, last = re.split(r"(?<=[/_])", name)
    found = SUFFIX.search(last)
    if found is not None:
        at = 0 if len(last) <= SHORT else found.start()
        end = escape(last[at:])
        tail = escape(last[:at]) + Markup('<span class="whole">{}</span>').format(end)
    else:
        tail = escape(last)
    return Markup("<wbr>").join([*parts, tail])


def signed(value: float, digits: int) -> str:
    """A number with a minus sign that is one."""
    return f"{value:.{digits}f}".replace("-", "−")


def figure_text(value: float | None) -> str:
    """A figure as it stands in tables."""
    return "–" if value is None else signed(value, 4)
