"""What all charts share: scales, ticks, axes, and SVG as text.

A chart is 440 units wide and is shown about as many pixels wide, so that its text has the size of the page's small text;
on a wide page charts stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import NormalDist

import numpy as np
from markupsafe import Markup

from facetrain.evaluate.report.content import Floats

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 40
COLOURS, DASHES = 7, 5  # as many as style.css knows
LINE_POINTS = 400  # of a line; more cannot be told apart


def probit(rates: Floats) -> Floats:
    """Where a standard normal distribution has these shares below it."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse(rate) for rate in np.asarray(rates).tolist()])


def log10(values: Floats) -> Floats:
    """NaN at or below 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(values) > 0, np.log10(values), np.nan)


def _linear(values: Floats) -> Floats:
    return np.asarray(values, np.float64)


@dataclass(frozen=True)
class Scale:
    """From values, ``low`` to ``high``, to units of the drawing, ``start`` to ``end``, evenly in ``of`` (value)."""

    low: float
    high: float
    start: float
    end: float
    of: Callable[[Floats], Floats] = _linear

    def __call__(self, values: Floats) -> Floats:
        low, high = self.of(np.array([self.low, self.high], np.float64)).tolist()
        share = (self.of(np.asarray(values, np.float64)) - low) / ((high - low) or 1.0)
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, *, wanted: int = 5, inside: bool = False) -> Floats:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose ``low`` to ``high``; or all lie within."""
    if high <= low:
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = low / step, high / step
    first, last = (
        (math.ceil(first - 1e-9), math.floor(last + 1e-9)) if inside else (math.floor(first), math.ceil(last))
    )
    ticks: Floats = np.arange(first, last + 1, dtype=np.float64) * step
    return ticks


def decades(low: float, high: float) -> Floats:
    """The powers of ten from at or below ``low`` to at or above ``high``, at most eight of them."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = max(1, math.ceil((last - first) / 7))
    powers: Floats = 10.0 ** np.arange(first, max(last, first + 1) + 1, step, dtype=np.float64)
    return powers


def decade_below(rates: Iterable[Floats]) -> float:
    """The power of ten at or below the smallest rate above 0."""
    smallest = min([float(rate[rate > 1e-12].min()) for rate in rates if (rate > 1e-12).any()], default=0.1)
    return 10.0 ** min(math.floor(math.log10(smallest) + 1e-9), -1)


def plain(value: float) -> str:
    """`0.25`, `1,000`, `2e-5`."""
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(exponent)}".replace("-", "−")
    return (f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}").replace("-", "−")


def texts_of(ticks: Floats) -> list[tuple[float, str]]:
    """(value, what stands at it) of each tick."""
    return [(tick, plain(tick)) for tick in np.asarray(ticks).tolist()]


def frame(
    x: Scale,
    y: Scale,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> str:
    """Grid lines, what stands at them, and what the axes are."""
    parts = []
    for value, text in y_ticks:
        at = float(y(np.array([value]))[0])
        parts.append(f'<path class="grid" d="M{coordinate(x.start)} {coordinate(at)}H{WIDTH - RIGHT}"/>')
        parts.append(text_at(x.start - 7, at + 4, text, "end"))
    for value, text in x_ticks:
        at = float(x(np.array([value]))[0])
        parts.append(f'<path class="grid" d="M{coordinate(at)} {TOP}V{HEIGHT - BOTTOM}"/>')
        anchor = "end" if at > WIDTH - RIGHT - 8 else "middle"
        parts.append(text_at(at, HEIGHT - BOTTOM + 16, text, anchor))
    parts.append(f'<path class="axis" d="M{coordinate(x.start)} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(text_at((x.start + x.end) / 2, HEIGHT - 5, x_label, "middle", "label"))
    turned = f'transform="rotate(-90 11 {coordinate((TOP + HEIGHT - BOTTOM) / 2)})"'
    parts.append(text_at(11, (TOP + HEIGHT - BOTTOM) / 2, y_label, "middle", "label", turned))
    return "".join(parts)


def svg(alt: str, parts: Iterable[str], size: tuple[int, int] = (WIDTH, HEIGHT), kind: str = "") -> Markup:
    """A drawing of these elements; ``alt`` says in words what is to be seen."""
    return Markup(
        f'<svg class="chart {kind}" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(parts)}</svg>"
    )


def text_at(x: float, y: float, text: str, anchor: str, kind: str = "tick", more: str = "") -> str:
    """A text; ``anchor`` is start, middle or end."""
    at = f'x="{coordinate(x)}" y="{coordinate(y)}"'
    return f'<text class="{kind}" {at} text-anchor="{anchor}" {more}>{escape(text)}</text>'


def style_of(number: int) -> str:
    """The classes of a line's colour and dashes."""
    return f"c{number % COLOURS} d{(number + number // COLOURS) % DASHES}"


def path_of(x: Floats, y: Floats) -> str:
    """Straight lines through points; where one is no number, the line is broken."""
    parts, pen = [], "M"
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        parts.append(f"{pen}{coordinate(a)} {coordinate(b)}")
        pen = "L"
    return "".join(parts)


def coordinate(value: float) -> str:
    """A number as short as it may be."""
    return f"{value:.1f}".removesuffix(".0")
