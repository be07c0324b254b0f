"""Figures in one house style, each saved as PNG (1200 px wide) and SVG.

Matplotlib's object interface only: no pyplot, no window system, no state left behind.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facetrain.evaluate.curves import staircase, thinned
from facetrain.evaluate.metrics import Floats, Metrics
from facetrain.evaluate.verification import auc, eer
from facetrain.files import replacing
from facetrain.progress import human_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with any colour vision, strongest on white first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, QUIET, GRID = "#222222", "#6B6B6B", "#E4E4E4"
WIDTH_IN, DPI = 10.0, 120
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a run may be called "lr$1"
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": QUIET,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "svg.hashsalt": "facetrain",  # the same data give the same file
}
STEP_POINTS = 1500  # drawn of a per-step line; more cannot be told apart at this width
ROC_POINTS = 3000
CROWD = 4  # with more runs than that, per-step lines are a tangle


def roc_figure(results: Mapping[str, tuple[Floats, Floats]], out: Path) -> list[Path]:
    """Draw ROC curves: FAR, on a logarithmic axis, against TAR; AUC and EER in the legend.

    ``results``: name → (far, tar) as :func:`facetrain.evaluate.verification.roc` returns them. Each curve is
    a staircase: its height is the largest TAR at or below a FAR, nothing interpolated. Writes ``out`` with
    suffix .png and .svg, whole or not at all, and returns the two paths.
    """
    with _house_style():
        figure = _new_figure(height_in=6.6)
        axes = figure.add_subplot()
        left = _decade_below_all([far for far, _ in results.values()])
        for (name, (far, tar)), colour in zip(results.items(), _colours(len(results)), strict=True):
            label = f"{_label(name)}:  AUC {auc(far, tar):.4f},  EER {eer(far, tar):.2%}"
            x, y = staircase(far, tar, left, ROC_POINTS)
            axes.plot(x, y, color=colour, drawstyle="steps-post", label=label)
        chance = np.geomspace(left, 1, 200)
        axes.plot(
            chance, chance, color="#9A9A9A", linewidth=1.2, linestyle=(0, (3, 2)), zorder=1.5, label="chance"
        )
        axes.set_xscale("log")
        axes.set_xlim(left, 1)
        axes.set_ylim(0, 1.01)
        axes.set_yticks(np.linspace(0, 1, 11))
        axes.xaxis.set_major_formatter(_plain_number)
        axes.set_title("Verification")
        axes.set_xlabel("false accept rate (FAR)")
        axes.set_ylabel("true accept rate (TAR)")
        _legend(axes)
        return _save(figure, out)


def loss_figure(runs: Mapping[str, Metrics], out: Path) -> list[Path]:
    """Draw how runs went, by epoch: training loss, validation accuracy, learning rate and the statistics
    of triplets, or of a head.

    Faint lines are logged steps, bold ones the means of epochs, drawn at the middle of the epoch; validation
    is drawn at its end, with a band of one standard error either way. Several runs get a colour each. What a
    run has not logged is left out. Writes ``out`` with suffix .png and .svg, whole or not at all, and returns
    the two paths.
    """
    with _house_style():
        from matplotlib.ticker import MaxNLocator

        colours = dict(zip(runs, _colours(len(runs)), strict=True))
        labels, columns = _head_labels(runs)
        figure = _new_figure(height_in=7.4 + 0.22 * math.ceil(len(labels) / columns))
        grid = figure.add_gridspec(3, 2, height_ratios=(5, 2, 3))
        places = (grid[0, 0], grid[0, 1], grid[1:, 0], grid[1, 1], grid[2, 1])
        loss, accuracy, rate, share, below = panels = [figure.add_subplot(place) for place in places]
        _draw_loss(loss, runs, colours)
        _draw_accuracy(accuracy, runs, colours)
        _draw_rate(rate, runs, colours)
        _draw_statistics(share, below, runs, colours)
        end = max([_last_epoch(metrics) for metrics in runs.values()], default=0.0) or 1.0
        for axes in panels:
            axes.set_xlim(0, end * 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=end >= 4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(_plain_number)
        share.tick_params(labelbottom=False)
        for axes in (loss, accuracy, rate, below):
            axes.set_xlabel("epoch")
        _head(figure, runs, colours)
        return _save(figure, out)


# The panels of loss_figure


def _draw_loss(axes: Axes, runs: Mapping[str, Metrics], colours: Mapping[str, str]) -> None:
    axes.set_title("Training loss")
    tops = [_draw_series(axes, metrics, "loss", colours[name], len(runs)) for name, metrics in runs.items()]
    margins = sorted({m for metrics in runs.values() if (m := metrics.last("margin")) is not None})
    for margin in margins:
        axes.axhline(margin, color=QUIET, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5)
        axes.annotate(
            f"margin {margin:g}",
            (1, margin),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=QUIET,
        )
    _frame_series(axes, tops, nothing="no loss logged", at_least=1.06 * max(margins, default=0.0))


def _draw_accuracy(axes: Axes, runs: Mapping[str, Metrics], colours: Mapping[str, str]) -> None:
    """Of one run the accuracies of all its validators, of several runs that of the first validator of each."""
    axes.set_title("Validation accuracy")
    crowded = len(runs) > CROWD
    for name, metrics in runs.items():
        columns = metrics.accuracies
        shades = _colours(len(columns)) if len(runs) == 1 else [colours[name]]
        for column, colour in zip(columns, shades, strict=False):
            epoch, value, error = metrics.of_validations(column, _error_of(column))
            if not len(epoch):
                continue
            axes.plot(epoch, value, color=colour, marker="o", markersize=3.5 if len(epoch) <= 50 else 0)
            if len(epoch) == 1:
                axes.errorbar(epoch, value, error, color=colour, capsize=4)
            elif not crowded:
                axes.fill_between(
                    epoch, value - error, value + error, color=colour, alpha=0.15, linewidth=0, zorder=1.5
                )
            best = int(np.argmax(value))
            axes.plot(
                epoch[best],
                value[best],
                linestyle="none",
                marker="o",
                markersize=9,
                markerfacecolor="white",
                markeredgecolor=colour,
                markeredgewidth=2,
                zorder=4,
                label=_best_accuracy(metrics, column, named=len(runs) == 1 and len(columns) > 1),
            )
    if not axes.lines:
        _say(axes, "no validation")
        return
    low, high = axes.get_ylim()
    if high - low < 0.02:  # a flat line is flat
        low, high = (low + high) / 2 - 0.01, (low + high) / 2 + 0.01
    axes.set_ylim(max(low, 0.0), min(high, 1.005))
    axes.yaxis.set_major_formatter(_plain_number)
    if not crowded:  # else the values stand in the head
        _legend(axes)


def _error_of(column: str) -> str:
    return column.removesuffix("accuracy") + "standard_error"


def _draw_rate(axes: Axes, runs: Mapping[str, Metrics], colours: Mapping[str, str]) -> None:
    axes.set_title("Learning rate")
    rates = []
    for name, metrics in runs.items():
        epoch, rate = metrics.of_steps("lr")
        if not len(epoch):
            epoch, rate = metrics.of_epochs("lr")
        axes.plot(
            *thinned(epoch, rate, STEP_POINTS), color=colours[name], marker="o" if len(epoch) == 1 else ""
        )
        rates.append(rate)
    every = np.concatenate([*rates, np.empty(0)])
    if not len(every):
        _say(axes, "no learning rate logged")
        return
    low, high = every.min(), every.max()
    if low > 0 and high / low >= 20:
        axes.set_yscale("log")
    elif low >= 0:
        axes.set_ylim(0, high * 1.08 or 1)
    axes.yaxis.set_major_formatter(_plain_number)


def _draw_statistics(
    upper: Axes, lower: Axes, runs: Mapping[str, Metrics], colours: Mapping[str, str]
) -> None:
    """What the losses have to say of themselves; of runs of different kinds, that of the first kind here."""

    def logged(column: str) -> bool:
        return any(metrics.last(column) is not None for metrics in runs.values())

    if logged("active_fraction"):
        _draw_share(upper, runs, colours, "active_fraction", title="Triplets", label="active pairs")
        _draw_two(lower, runs, colours, "distance", "squared distance", "to the")
    elif logged("train_accuracy"):
        _draw_share(upper, runs, colours, "train_accuracy", title="Training people", label="recognised")
        _draw_column(lower, runs, colours, "cos_target", "cosine to own class")
    else:
        upper.set_title("Pairs")
        _draw_column(upper, runs, colours, "embedding_std", "spread")
        _draw_two(lower, runs, colours, "similarity", "cosine", "of the")


def _draw_share(
    axes: Axes,
    runs: Mapping[str, Metrics],
    colours: Mapping[str, str],
    column: str,
    *,
    title: str,
    label: str,
) -> None:
    axes.set_title(title)
    axes.set_ylabel(label)
    tops = [_draw_series(axes, metrics, column, colours[name], len(runs)) for name, metrics in runs.items()]
    if not _frame_series(axes, tops, nothing=f"no {column.replace('_', ' ')} logged"):
        return
    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])


def _draw_column(
    axes: Axes, runs: Mapping[str, Metrics], colours: Mapping[str, str], column: str, label: str
) -> None:
    axes.set_ylabel(label)
    tops = [_draw_series(axes, metrics, column, colours[name], len(runs)) for name, metrics in runs.items()]
    _frame_series(axes, tops, nothing=f"no {label} logged")


def _draw_two(
    axes: Axes, runs: Mapping[str, Metrics], colours: Mapping[str, str], what: str, label: str, of: str
) -> None:
    """``what`` of positives and of negatives: distance, or similarity."""
    axes.set_ylabel(label)
    tops = []
    for column, label_of, dashes, single in (
        (f"{what}_negative", f"{of} negative", (0, (3, 1.6)), COLOURS[1]),
        (f"{what}_positive", f"{of} positive", "solid", COLOURS[0]),
    ):
        for name, metrics in runs.items():
            colour = single if len(runs) == 1 else colours[name]
            tops.append(_draw_series(axes, metrics, column, colour, len(runs), linestyle=dashes))
        axes.plot([], [], color=single if len(runs) == 1 else QUIET, linestyle=dashes, label=label_of)
    if _frame_series(axes, tops, nothing=f"no {label} logged"):
        _legend(axes, ncols=2)


def _draw_series(
    axes: Axes, metrics: Metrics, column: str, colour: str, num_runs: int, linestyle: Any = "solid"
) -> float | None:
    """Draw a column's steps faintly and its epoch means boldly; the height that shows both, None without
    values."""
    epoch, value = metrics.of_steps(column)
    if num_runs <= CROWD:
        faint = 0.35 if num_runs == 1 else 0.2
        axes.plot(*thinned(epoch, value, STEP_POINTS), color=colour, linewidth=0.7, alpha=faint, zorder=1.8)
    centre, mean = _epoch_means(metrics, column)
    marker = "o" if len(mean) <= 10 else ""
    axes.plot(centre, mean, color=colour, linestyle=linestyle, marker=marker, markersize=4)
    heights = [float(mean.max())] if len(mean) else []
    if len(value):
        heights.append(float(np.percentile(value, 99.5)))  # a rare spike may leave the panel
    return max(heights, default=None)


def _frame_series(axes: Axes, tops: list[float | None], *, nothing: str, at_least: float = 0.0) -> bool:
    """Scale the panel from 0 to the highest of ``tops``, as :func:`_draw_series` gave them; or say that there
    is nothing and return False."""
    known = [top for top in tops if top is not None]
    if not known:
        _say(axes, nothing)
        return False
    low = axes.dataLim.ymin  # of all that was drawn
    axes.set_ylim(min(low * 1.05, 0.0), max(*known, at_least) * 1.06 or 1.0)
    axes.yaxis.set_major_formatter(_plain_number)
    return True


def _head_labels(runs: Mapping[str, Metrics]) -> tuple[list[str], int]:
    """What the head says of each run, and in how many columns that fits."""
    labels = [_label(name) for name in runs]
    if len(runs) > CROWD:
        labels = [
            f"{label}:  {_best_accuracy(metrics, column)}"
            if (column := next(iter(metrics.accuracies), "")) and metrics.of_validations(column)[0].size
            else label
            for label, metrics in zip(labels, runs.values(), strict=True)
        ]
    return labels, max(1, 110 // (max(map(len, labels), default=0) + 7))


def _head(figure: Figure, runs: Mapping[str, Metrics], colours: Mapping[str, str]) -> None:
    """Above the panels: what the run was, or which colour is which run."""
    from matplotlib.lines import Line2D

    if len(runs) == 1:
        ((name, metrics),) = runs.items()
        figure.suptitle(f"{_label(name)}{_summary(metrics)}", x=0.008, ha="left", fontsize=11)
        return
    lines = [Line2D([], [], color=colours[name], linewidth=3) for name in runs]
    labels, columns = _head_labels(runs)
    figure.legend(lines, labels, loc="outside upper left", ncols=columns, fontsize=10)


def _summary(metrics: Metrics) -> str:
    """As far as it is known: `  ·  12 epochs  ·  120,000 images  ·  1:15:02`."""
    epochs, images, seconds = _last_epoch(metrics), _highest(metrics, "images"), _highest(metrics, "seconds")
    parts = [f"{epochs:.4g} epoch{'' if epochs == 1 else 's'}"] if epochs else []
    parts += [f"{images:,.0f} images"] if images else []
    parts += [human_duration(seconds)] if seconds else []
    return "".join(f"  ·  {part}" for part in parts)


# From metrics to what is drawn


def _best_accuracy(metrics: Metrics, column: str, *, named: bool = False) -> str:
    """`best 0.8608 ± 0.0080, epoch 26`, the first of equally good ones; ``named``: of which validator."""
    epoch, value, error = metrics.of_validations(column, _error_of(column))
    best = int(np.argmax(value))
    spread = f" ± {error[best]:.4f}" if np.isfinite(error[best]) else ""
    who = f"{_label(column.removesuffix('_accuracy'))}: " if named else ""
    return f"{who}best {value[best]:.4f}{spread}, epoch {epoch[best]:.3g}"


def _epoch_means(metrics: Metrics, column: str) -> tuple[Floats, Floats]:
    """(middle of the epoch, mean) of each epoch: as logged for it, or else the mean of its steps."""
    epoch, value = metrics.of_epochs(column)
    if len(epoch):
        return np.maximum(epoch - 0.5, 0), value
    epoch, value = metrics.of_steps(column)
    _, which = np.unique(np.ceil(epoch), return_inverse=True)
    count = np.bincount(which)
    return np.bincount(which, weights=epoch) / count, np.bincount(which, weights=value) / count


def _last_epoch(metrics: Metrics) -> float:
    return _highest(metrics, "epoch")


def _highest(metrics: Metrics, column: str) -> float:
    values = np.concatenate([metrics.of_steps(column)[1], metrics.of_epochs(column)[1]])
    return float(values.max(initial=0.0))


def _decade_below_all(fars: list[Floats]) -> float:
    """The power of ten at or below the smallest FAR above 0, where the axis begins."""
    smallest = min([float(far[far > 0].min()) for far in fars], default=0.1)
    return 10.0 ** min(math.floor(math.log10(smallest)), -1)


# House style


@contextmanager
def _house_style() -> Iterator[None]:
    """Matplotlib's defaults and STYLE, whatever the user's own settings, put back at the end."""
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context(["default", STYLE]):
        # A name in a script that the font lacks shows as boxes; that is no cause for alarm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _new_figure(height_in: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout=layout)


def _save(figure: Figure, out: Path) -> list[Path]:
    base = out.with_suffix("") if out.suffix.lower() in (".png", ".svg") else out  # "lr_0.1" has no suffix
    base.parent.mkdir(parents=True, exist_ok=True)
    paths = [base.with_name(f"{base.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        with replacing(path) as temp:
            undated = {"Date": None} if path.suffix == ".svg" else None  # the same data give the same file
            figure.savefig(temp, format=path.suffix[1:], metadata=undated)
    return paths


def _colours(count: int) -> list[str]:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.92, count))]


def _label(name: str) -> str:
    """A name that fits; Matplotlib would hide a label that begins with an underscore."""
    name = name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"
    return f" {name}" if name.startswith("_") else name


def _legend(axes: Axes, *, ncols: int = 1) -> None:
    """Where it covers least, on a veil that keeps the text readable over lines."""
    axes.legend(
        loc="best",
        ncols=ncols,
        fontsize=9,
        frameon=True,
        facecolor="white",
        edgecolor="none",
        framealpha=0.85,
    )


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)
    axes.set_yticks([])
    axes.grid(False)


def _plain_number(value: float, _position: float | None = None) -> str:
    """`0.25`, `1000`, `0`; `2e-5` where Python would write 2e-05 or 0.00002."""
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.4e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.6g}"
