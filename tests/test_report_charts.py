"""Charts of the report: what they say is what was given, and they are well-formed whatever that is called."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import norm

from facetrain.evaluate.curves import staircase, thinned
from facetrain.evaluate.metrics import Metrics
from facetrain.evaluate.report import charts, drawing, panels
from facetrain.evaluate.report.charts import Curve, Line
from facetrain.evaluate.report.compared import Column
from facetrain.evaluate.report.content import EmbeddingMap
from facetrain.evaluate.verification import roc, tar_at_far

STYLE = (Path(charts.__file__).parent / "style.css").read_text()
NAME = "<b onload='x()'>\"&{{ 1 }}"


def elements(svg: str, kind: str) -> list[ElementTree.Element]:
    """Those with this class; the text must be well-formed XML."""
    root = ElementTree.fromstring(svg)
    assert not list(root.iter("b"))
    return [e for e in root.iter() if kind in (e.get("class") or "").split()]


def points(path: ElementTree.Element) -> np.ndarray:
    """The corners of a path of straight lines."""
    return np.array(
        [[float(x), float(y)] for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d") or "")]
    )


def said(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter("title")]


def curve(seed: int = 0, pairs: int = 300) -> tuple[Curve, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    scores = np.round(rng.normal(same * 1.2, 1), 1)  # with ties
    return Curve(NAME, 0, *roc(scores, same)[:2]), scores, same


# -- axes ------------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_enclose(low: float, extent: float) -> None:
    assume(extent > 1e-6 * abs(low))  # or float64 itself has no room for ticks
    high = low + extent
    ticks = drawing.nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * extent and ticks[-1] >= high - 1e-6 * extent
    assert 2 <= len(ticks) <= 9
    digits = step / 10 ** math.floor(math.log10(step * 1.0001))
    assert min(abs(digits - round_one) for round_one in (1, 2, 5, 10)) < 1e-3
    within = drawing.nice_ticks(low, high, inside=True)
    assert all(low - 1e-6 * extent <= tick <= high + 1e-6 * extent for tick in within)


def test_decades() -> None:
    np.testing.assert_allclose(drawing.decades(1e-3, 1), [1e-3, 1e-2, 0.1, 1])
    np.testing.assert_allclose(drawing.decades(0.02, 3), [0.01, 0.1, 1, 10])
    assert len(drawing.decades(1e-12, 1)) <= 8


def test_numbers_as_people_write_them() -> None:
    assert [drawing.plain(x) for x in (0.0, 0.25, -0.5, 1234.0, 123456.0, 2e-5)] == [
        "0",
        "0.25",
        "−0.5",
        "1,234",
        "123,456",
        "2e−5",
    ]


def test_probit_is_scipys() -> None:
    rates = np.array([1e-7, 0.001, 0.2, 0.5, 0.9])
    np.testing.assert_allclose(drawing.probit(rates), norm.ppf(rates), rtol=1e-9, atol=1e-12)


def test_thirty_five_lines_are_told_apart() -> None:
    styles = {drawing.style_of(number) for number in range(35)}
    assert len(styles) == 35
    for style in styles - {"d0"}:
        for name in style.split():
            assert name == "d0" or f".{name} " in STYLE or f".{name} {{" in STYLE, name


# -- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_goes_through_its_points() -> None:
    x, y = np.array([0.0, 1, 2, 4]), np.array([0.0, 0.5, 0.25, 1])
    svg = charts.line_chart(
        [Line(NAME, 1, x, y, low=y - 0.1, high=y + 0.1, marked=3)],
        alt=NAME,
        x_label="epoch",
        y_label="accuracy",
    )
    (line,) = elements(svg, "line")
    drawn = points(line)
    np.testing.assert_allclose(np.corrcoef(drawn[:, 0], x)[0, 1], 1, atol=1e-4)
    np.testing.assert_allclose(np.corrcoef(drawn[:, 1], y)[0, 1], -1, atol=1e-4)  # down is more
    assert ElementTree.fromstring(svg).get("aria-label") == NAME
    assert f"{NAME}: 0.25 at 2" in said(svg)
    assert len(elements(svg, "band")) == len(elements(svg, "ring")) == 1
    assert drawing.style_of(1) in (line.get("class") or "")


def test_odd_lines() -> None:
    for y in (np.array([math.nan, 1, math.nan, 2]), np.ones(4), np.zeros(4), np.full(4, -3.0)):
        svg = charts.line_chart([Line("a", 0, np.arange(4.0), y)], alt="", x_label="", y_label="")
        assert "nan" not in svg and "inf" not in svg
    one = charts.line_chart([Line("a", 0, np.array([1.0]), np.array([2.0]))], alt="", x_label="", y_label="")
    assert len(elements(one, "dot")) == 1
    log = charts.line_chart(
        [Line("a", 0, np.arange(3.0), np.array([0.0, 0.1, 10]))], alt="", x_label="", y_label="", log=True
    )
    assert "nan" not in log and len(points(elements(log, "line")[0])) == 2


def test_long_lines_keep_their_peaks() -> None:
    x = np.arange(10_000.0)
    y = np.random.default_rng(0).normal(size=10_000)
    y[[1234, 8765]] = 50, -60
    a, b = thinned(x, y, drawing.LINE_POINTS)
    assert len(a) <= drawing.LINE_POINTS * 1.1 and b.max() == 50 and b.min() == -60
    assert (np.diff(a) > 0).all()
    np.testing.assert_array_equal(y[a.astype(int)], b)


# -- verification ----------------------------------------------------------------------------------------------------


def test_the_staircase_is_tar_at_far() -> None:
    made, scores, same = curve()
    far, tar = staircase(made.far, made.tar, 1e-3, drawing.LINE_POINTS)
    for rate, height in zip(far, tar, strict=True):
        best = 0.0
        for threshold in [math.inf, *scores]:
            if (scores[~same] >= threshold).mean() <= rate:
                best = max(best, float((scores[same] >= threshold).mean()))
        assert height == pytest.approx(best)
    thresholds = roc(scores, same)[2]
    expected = tar_at_far(made.far, made.tar, thresholds, [0.1], different_pairs=int((~same).sum()))[0.1]
    assert tar[np.searchsorted(far, 0.1, side="right") - 1] == expected
    many = curve(1, 40_000)[0]
    crowded = Curve("many", 0, np.linspace(0, 1, 5001), np.sqrt(np.linspace(0, 1, 5001)))
    assert len(staircase(crowded.far, crowded.tar, 1e-4, drawing.LINE_POINTS)[0]) <= drawing.LINE_POINTS + 1
    for one in (made, many, crowded):
        for draw in (charts.roc_chart, charts.det_chart):
            svg = draw([one], alt=NAME)
            (line,) = elements(svg, "line")
            where = points(line)
            assert (np.diff(where[:, 0]) >= -0.11).all() and len(where) > 10
            assert one.name in said(svg)


def test_a_perfect_network_can_be_drawn() -> None:
    same = np.array([True, True, False, False])
    perfect = Curve("p", 0, *roc([0.9, 0.8, 0.1, 0.2], same)[:2])
    assert len(points(elements(charts.roc_chart([perfect], alt=""), "line")[0])) > 1
    assert "nan" not in charts.det_chart([perfect], alt="")  # there is no error to draw


def test_histograms_hold_every_pair() -> None:
    _, scores, same = curve()
    scores[:7] = -np.inf
    svg = charts.score_histogram(scores, same, 0.4, alt="")
    finite = np.isfinite(scores)
    for kind, of_kind in (("same", same), ("different", ~same)):
        (hump,) = elements(svg, kind)
        up = points(hump)[1:-1:2, 1]
        bottom = points(hump)[0, 1]
        heights = bottom - up
        counts = np.histogram(
            scores[finite & of_kind], np.linspace(scores[finite].min(), scores.max(), charts.BINS + 1)
        )[0]
        assert len(heights) == charts.BINS
        np.testing.assert_allclose(heights / heights.sum(), counts / counts.sum(), atol=2e-3)
    assert "threshold 0.400" in said(svg)
    flat = charts.score_histogram(np.full(4, 0.5), np.array([True, False] * 2), None, alt="")
    assert "nan" not in flat


# -- people ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 700), min_size=1, max_size=60))
def test_photographs_per_person(counts: list[int]) -> None:
    labels, people = charts.photographs_per_person(np.array(counts))
    assert people.sum() == len(counts) and people[0] > 0
    for label, number in zip(labels, people, strict=True):
        low, _, high = label.partition("–")
        assert number == sum(int(low) <= count <= int(high or low) for count in counts)
    assert len(elements(charts.count_chart(np.array(counts), alt=""), "bar")) == len(labels)


def test_the_map_names_everybody() -> None:
    rng = np.random.default_rng(0)
    names = [NAME, *(f"person {i}" for i in range(30))]
    person = np.repeat(np.arange(31), 4)
    found = EmbeddingMap(rng.normal(size=(124, 2)) * [9, 4], person, names, "")
    svg = charts.map_chart(found, alt="", width=440)
    assert [title.rpartition(":")[0] for title in said(svg)] == names
    assert sum(len(re.findall("M", e[1].get("d") or "")) for e in elements(svg, "person")) == 124
    box = [float(v) for v in (ElementTree.fromstring(svg).get("viewBox") or "").split()]
    for group in elements(svg, "person"):
        for x, y in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", group[1].get("d") or ""):
            assert 0 < float(x) < box[2] and 0 < float(y) < box[3]
    assert len(elements(svg, "place")) <= charts.NAMED


def test_losses_of_different_kinds_are_far_apart() -> None:
    assert panels.far_apart([np.array([0.2, 0.3]), np.array([20.0, 12])])
    assert not panels.far_apart([np.array([0.2, 0.3]), np.array([2.0, 1])])
    assert not panels.far_apart([np.array([0.0, 0.3]), np.array([20.0, 12])])


def test_rows_of_steps_stand_at_their_middle() -> None:
    np.testing.assert_allclose(panels.middles(np.array([0.4, 0.8, 1.0])), [0.2, 0.6, 0.9])
    assert len(panels.middles(np.empty(0))) == 0


def trained(rows: int, *, lr: bool = False) -> Metrics:
    """Four epochs with so many rows of steps each; the loss of a row is where it ends."""
    ends = np.linspace(0, 4, 4 * rows + 1)[1:]
    name = "lr" if lr else "loss"
    return Metrics({"epoch": ends, name: ends}, {"epoch": np.arange(1.0, 5), name: np.arange(1.0, 5) - 0.5})


def test_faint_lines_are_means_of_a_few_steps() -> None:
    run = Column(NAME, 0, [])
    panel = panels._panel("Training loss", "loss", "loss", [(run, trained(5))])
    assert panel is not None and panel.faint
    (faint,) = elements(panel.chart, "faint")
    (bold,) = (e for e in elements(panel.chart, "line") if "faint" not in (e.get("class") or ""))
    left, right = points(bold)[[0, -1], 0]  # middles of the first epoch and of the last
    per_epoch = (right - left) / 3
    expected = left + (np.arange(20) / 5 + 0.1 - 0.5) * per_epoch
    np.testing.assert_allclose(points(faint)[:, 0], expected, atol=0.2)
    for once in (trained(1), Metrics({}, trained(5).epochs)):
        panel = panels._panel("Training loss", "loss", "loss", [(run, once)])
        assert panel is not None and not panel.faint and not elements(panel.chart, "faint")
    panel = panels._panel("Training loss", "loss", "loss", [(run, Metrics(trained(5).steps, {}))])
    assert panel is not None and not panel.faint  # the first epoch is not over: they are all there is
    assert len(points(elements(panel.chart, "line")[0])) == 20
    panel = panels._panel("Learning rate", "lr", "lr", [(run, trained(5, lr=True))])
    assert panel is not None and "peak 4" in panel.text and "at 0.2<" in panel.chart  # no mean: where it was


# -- colours ---------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(scheme: str) -> None:
    """Contrast of WCAG AA: 4.5 for text, 3 for what is drawn."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)
    )
    colours = light if scheme == "light" else light | dark
    assert set(dark) == set(light)

    def contrast(one: str, other: str) -> float:
        a, b = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (a + 0.05) / (b + 0.05)

    for paper in ("paper", "surface"):
        for ink in ("ink", "quiet", "accent", "wrong", "right"):
            assert contrast(ink, paper) >= 4.5, (ink, paper)
        for number in range(drawing.COLOURS):
            assert contrast(f"c{number}", paper) >= 3, (number, paper)
    assert (
        contrast("ink", "soft") >= 4.5
        and contrast("quiet", "soft") >= 4.5
        and contrast("ink", "note-paper") >= 4.5
    )
