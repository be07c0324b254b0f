"""Charts as inline SVG, drawn with the page's own classes and colours, so that they follow light and dark.

A line has a colour and a pattern of dashes, by its number: neither is needed to tell it from others by the other. Shapes
have a <title>, which browsers show under the mouse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import NormalDist

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from facetrain.evaluate.curves import staircase, thinned
from facetrain.evaluate.report.content import EmbeddingMap, Floats
from facetrain.evaluate.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LINE_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    coordinate,
    decade_below,
    decades,
    frame,
    log10,
    nice_ticks,
    path_of,
    plain,
    probit,
    style_of,
    svg,
    text_at,
    texts_of,
)

BINS = 44
HOVERED = 120  # points of a line that say their value under the mouse; not of longer ones


# -- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Line:
    """x and y float64 [n]. number: decides on colour and dashes. low, high: a band around it. faint: of a secondary line.
    marked: the point that gets a ring."""

    name: str
    number: int
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    faint: bool = False
    marked: int | None = None


def line_chart(
    lines: Sequence[Line], *, alt: str, x_label: str, y_label: str, from_zero: bool = False, log: bool = False
) -> Markup:
    """Curves over x ≥ 0. log: a logarithmic y axis, on which there is nothing at or below 0."""
    values = [part for line in lines for part in (line.y, line.low, line.high) if part is not None]
    every = np.concatenate([part[np.isfinite(part)] for part in values])
    if log:
        every = every[every > 0]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.1, 1.0)
    if from_zero and not log:
        low = min(low, 0.0)
    if log:
        ticks = decades(low, high)
        low, high = min(low, ticks[0]), max(high, ticks[-1])
        y = Scale(low, high, HEIGHT - BOTTOM, TOP, log10)
    else:
        ticks = nice_ticks(low, high)
        low, high = min(low, ticks[0]), max(high, ticks[-1])
        y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    left = max(LEFT, 28 + 7 * max(len(plain(tick)) for tick in ticks.tolist()))
    end = max((float(line.x.max()) for line in lines if len(line.x)), default=1.0) or 1.0
    x = Scale(0, end, left, WIDTH - RIGHT)
    parts = [frame(x, y, texts_of(nice_ticks(0, end, inside=True)), texts_of(ticks), x_label, y_label)]
    parts += [_band(line, x, y) for line in lines if line.low is not None and line.high is not None]
    parts += [_line(line, x, y) for line in sorted(lines, key=lambda line: not line.faint)]
    return svg(alt, parts)


def _band(line: Line, x: Scale, y: Scale) -> str:
    assert line.low is not None and line.high is not None
    there = np.isfinite(line.low) & np.isfinite(line.high)
    if there.sum() < 2:
        return ""
    along = np.concatenate([x(line.x[there]), x(line.x[there])[::-1]])
    edge = np.concatenate([y(line.high[there]), y(line.low[there])[::-1]])
    return f'<path class="band {style_of(line.number)}" d="{path_of(along, edge)}Z"/>'


def _line(line: Line, x: Scale, y: Scale) -> str:
    across, up = thinned(line.x, line.y, LINE_POINTS)
    name = escape(line.name)
    if line.faint:
        return f'<path class="line faint {style_of(line.number)}" d="{path_of(x(across), y(up))}"/>'
    parts = [
        f'<path class="line {style_of(line.number)}" d="{path_of(x(across), y(up))}"><title>{name}</title></path>'
    ]
    if len(line.x) == 1:
        parts.append(_dot(line, 0, x, y, "dot"))
    if line.marked is not None:
        parts.append(_dot(line, line.marked, x, y, "ring"))
    if len(line.x) <= HOVERED:
        there = np.flatnonzero(np.isfinite(x(line.x)) & np.isfinite(y(line.y)))
        parts += [_dot(line, i, x, y, "hover") for i in there.tolist()]
    return "".join(parts)


def _dot(line: Line, i: int, x: Scale, y: Scale, kind: str) -> str:
    radius = {"dot": 3.5, "ring": 5, "hover": 7}[kind]
    at = f'cx="{coordinate(x(line.x[i : i + 1])[0])}" cy="{coordinate(y(line.y[i : i + 1])[0])}" r="{radius}"'
    said = f"{escape(line.name)}: {plain(float(line.y[i]))} at {plain(float(line.x[i]))}"
    return f'<circle class="{kind} {style_of(line.number)}" {at}><title>{said}</title></circle>'


# -- verification ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Curve:
    """far and tar float64 [n] as `facetrain.evaluate.verification.roc` returns them."""

    name: str
    number: int
    far: Floats
    tar: Floats


def roc_chart(curves: Sequence[Curve], *, alt: str) -> Markup:
    """FAR, on a logarithmic axis, against TAR: staircases, nothing interpolated."""
    left = decade_below([curve.far for curve in curves])
    x = Scale(left, 1, LEFT, WIDTH - RIGHT, log10)
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [
        frame(
            x,
            y,
            texts_of(decades(left, 1)),
            texts_of(np.linspace(0, 1, 6)),
            "false accept rate",
            "true accept rate",
        )
    ]
    chance = np.geomspace(left, 1, 60)
    parts.append(f'<path class="chance" d="{path_of(x(chance), y(chance))}"><title>chance</title></path>')
    for curve in curves:
        far, tar = staircase(curve.far, curve.tar, left, LINE_POINTS)
        parts.append(_curve(curve, x(np.repeat(far, 2)[1:]), y(np.repeat(tar, 2)[:-1])))
    return svg(alt, parts)


def det_chart(curves: Sequence[Curve], *, alt: str) -> Markup:
    """FAR against the share of same-person pairs refused, both on axes on which normal distributions give straight lines
    (Martin et al., "The DET curve in assessment of detection task performance", 1997)."""
    left = decade_below([curve.far for curve in curves])
    bottom = decade_below([1 - curve.tar for curve in curves])
    x = Scale(left, 0.6, LEFT, WIDTH - RIGHT, probit)
    y = Scale(bottom, 0.6, HEIGHT - BOTTOM, TOP, probit)
    marks = np.array([1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5])
    across, up = (texts_of(marks[marks >= end]) for end in (left, bottom))
    parts = [frame(x, y, across, up, "false accept rate", "false reject rate")]
    equal = np.array([max(left, bottom), 0.6])
    parts.append(f'<path class="chance" d="{path_of(x(equal), y(equal))}"><title>equal errors</title></path>')
    for curve in curves:
        inside = (curve.far > 0) & (curve.far < 1) & (curve.tar > 0) & (curve.tar < 1)
        far, frr = curve.far[inside], 1 - curve.tar[inside]
        keep = (far >= left) & (far <= 0.6) & (frr >= bottom) & (frr <= 0.6)
        far, frr = far[keep], frr[keep]
        if len(far) > LINE_POINTS:
            wanted = NormalDist().cdf
            steps = np.linspace(probit(far[:1])[0], probit(far[-1:])[0], LINE_POINTS)
            at = np.searchsorted(far, [wanted(step) for step in steps]).clip(0, len(far) - 1)
            far, frr = far[np.unique(at)], frr[np.unique(at)]
        if len(far):
            parts.append(_curve(curve, x(far), y(frr)))
    return svg(alt, parts)


def _curve(curve: Curve, x: Floats, y: Floats) -> str:
    title = f"<title>{escape(curve.name)}</title>"
    return f'<path class="line {style_of(curve.number)}" d="{path_of(x, y)}">{title}</path>'


def score_histogram(scores: Floats, same: NDArray[np.bool_], threshold: float | None, *, alt: str) -> Markup:
    """Scores of pairs of one person and of two, each kind as shares of itself; refused ones (-inf) are left out."""
    finite = np.isfinite(scores)
    shown = scores[finite]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = []
    for kind in (~same, same):
        counts = np.histogram(scores[finite & kind], edges)[0]
        shares.append(counts / max(int(kind.sum()), 1))
    top = max(float(share.max()) for share in shares) or 1.0
    x = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    ticks = nice_ticks(0, top, wanted=4)
    y = Scale(0, max(top, ticks[-1]), HEIGHT - BOTTOM, TOP)
    percents = [(tick, f"{plain(100 * tick)}%") for tick in ticks.tolist()]
    along = texts_of(nice_ticks(edges[0], edges[-1], inside=True))
    parts = [frame(x, y, along, percents, "score", "share of the pairs")]
    for share, (style, name) in zip(
        shares, (("different", "two people"), ("same", "one person")), strict=True
    ):
        across = np.concatenate([[x.start], np.repeat(x(edges), 2)[1:-1], [x.end]])
        up = np.concatenate([[y.start], np.repeat(y(share), 2), [y.start]])
        parts.append(f'<path class="hump {style}" d="{path_of(across, up)}Z"><title>{name}</title></path>')
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        at = coordinate(x(np.array([threshold]))[0])
        parts.append(
            f'<path class="threshold" d="M{at} {TOP}V{HEIGHT - BOTTOM}"><title>threshold {threshold:.3f}</title></path>'
        )
    return svg(alt, parts)


# -- counts ----------------------------------------------------------------------------------------------------------


def count_chart(per_person: NDArray[np.int64], *, alt: str) -> Markup:
    """How many people have how many photographs."""
    labels, counts = photographs_per_person(per_person)
    x = Scale(0, len(labels), LEFT, WIDTH - RIGHT)
    ticks = nice_ticks(0, float(counts.max()))
    y = Scale(0, float(max(counts.max() * 1.06, ticks[-1])), HEIGHT - BOTTOM, TOP)
    parts = [frame(x, y, [], texts_of(ticks), "photographs of a person", "people")]
    width = (x.end - x.start) / len(labels)
    sparse = max(1, math.ceil(len(labels) * max(map(len, labels)) * 7.5 / (x.end - x.start)))
    for i, (label, count) in enumerate(zip(labels, counts.tolist(), strict=True)):
        left, top = x.start + i * width, float(y(np.array([count]))[0])
        size = f'width="{coordinate(width - min(3, width / 4))}" height="{coordinate(y.start - top)}"'
        title = f"<title>{count:,} people with {label}</title>"
        parts.append(
            f'<rect class="bar" x="{coordinate(left)}" y="{coordinate(top)}" {size} rx="1.5">{title}</rect>'
        )
        if i % sparse == 0:
            parts.append(text_at(left + width / 2, y.start + 16, label, "middle"))
    return svg(alt, parts)


def photographs_per_person(per_person: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """(photographs, how many people have so many): each number by itself up to 24, doubling classes where there are more."""
    most = int(per_person.max())
    if most <= 24:
        first = int(per_person.min())
        return [str(n) for n in range(first, most + 1)], np.bincount(per_person)[first:]
    edges = [1]
    while edges[-1] <= most:
        edges.append(edges[-1] * 2)
    counts = np.histogram(per_person, edges)[0]
    labels = [str(a) if b - a == 1 else f"{a}–{b - 1}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    first = int(np.flatnonzero(counts)[0])
    return labels[first:], counts[first:]


# -- a map -----------------------------------------------------------------------------------------------------------

NAMED = 10  # people whose names stand on the map
LETTER = 7.6  # width of a letter of them, about


def map_chart(found: EmbeddingMap, *, alt: str, width: int) -> Markup:
    """Photographs as dots, a colour a person; the name under the mouse, and those of the people with most photographs."""
    low, extent = found.points.min(axis=0), np.maximum(np.ptp(found.points, axis=0), 1e-9)
    height = round(width * min(max(extent[1] / extent[0], 0.5), 0.75))
    scale = min((width - 56) / extent[0], (height - 56) / extent[1])
    points = (found.points - low - extent / 2) * scale + np.array([width / 2, height / 2])
    parts: list[str] = []
    names: list[str] = []
    taken: list[tuple[float, float, float]] = []
    order = np.argsort(-np.bincount(found.person), kind="stable").tolist()
    for place, person in enumerate(order):
        own = points[found.person == person]
        name, dots = (
            escape(found.names[person]),
            "".join(f"M{coordinate(a)} {coordinate(b)}h0" for a, b in own.tolist()),
        )
        hue = round(person * 137.508) % 360  # the golden angle: neighbours in the list are far apart
        title = f"<title>{name}: {len(own)} photograph{'s' * (len(own) != 1)}</title>"
        parts.append(f'<g class="person" style="--hue:{hue}">{title}<path d="{dots}"/></g>')
        shown = found.names[person] if len(found.names[person]) <= 24 else found.names[person][:23] + "…"
        half = LETTER / 2 * len(shown) + 6
        across, down = float(np.median(own[:, 0])), float(np.quantile(own[:, 1], 0.2))
        box = (min(max(across, half), width - half), down - 8, half)
        if place < 4 * NAMED and len(names) < NAMED and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            names.append(text_at(box[0], box[1], shown, "middle", "place"))
    return svg(alt, [*parts, *names], (width, height), "map")


def _overlap(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    return abs(a[0] - b[0]) < a[2] + b[2] and abs(a[1] - b[1]) < 18
