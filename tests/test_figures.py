"""Metrics are read as they were written, and every kind of run can be drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetrain.errors import UserError
from facetrain.evaluate import figures
from facetrain.evaluate.curves import staircase, thinned
from facetrain.evaluate.figures import loss_figure, roc_figure
from facetrain.evaluate.metrics import COLUMNS, Metrics, read_metrics
from facetrain.evaluate.verification import roc

HEADER = ["kind", *COLUMNS, "margin"]


def write_run(folder: Path, epochs: int, *, per_epoch: int = 20, without: tuple[str, ...] = ()) -> Path:
    """A run that went well; columns named in ``without`` stay empty."""
    rng = np.random.default_rng(epochs)
    lines = [",".join(HEADER)]
    for step in range(1, epochs * per_epoch + 1):
        epoch = step / per_epoch
        row = {
            "kind": "step",
            "epoch": epoch,
            "step": step,
            "images": 60 * step,
            "seconds": 0.5 * step,
            "loss": 0.1 + 0.1 * np.exp(-epoch) + 0.01 * rng.random(),
            "lr": 1e-3 * 0.1 ** (epoch > 2),
            "active_fraction": 0.5,
            "distance_positive": 0.5,
            "distance_negative": 1.2,
            "embedding_std": 0.08,
            "margin": 0.2,
        }
        rows = [row]
        if step % per_epoch == 0:
            validation = {"val_accuracy": 0.8 + 0.01 * epoch, "val_standard_error": 0.01, "val_auc": 0.9}
            rows.append(row | validation | {"kind": "epoch", "epoch": epoch})
        for row in rows:
            lines.append(",".join("" if name in without else str(row.get(name, "")) for name in HEADER))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_lines(folder: Path, *lines: str) -> Path:
    (folder / "metrics.csv").write_text("".join(f"{line}\n" for line in lines))
    return folder


def assert_drawn(paths: list[Path], base: Path) -> None:
    assert paths == [Path(f"{base}.png"), Path(f"{base}.svg")]
    with Image.open(paths[0]) as image:
        assert image.format == "PNG"
        assert image.width == 1200
        pixels = np.asarray(image.convert("RGB"))
    assert 0.01 < (pixels != 255).any(axis=2).mean() < 0.5  # neither blank nor blotted out
    assert paths[1].read_text().rstrip().endswith("</svg>")
    assert sorted(base.parent.glob(".*")) == []  # no temporary file left


# read_metrics


def test_metrics_come_back_as_written(tmp_path):
    metrics = read_metrics(write_run(tmp_path, 3))
    assert metrics.steps["step"].tolist() == list(range(1, 61))
    assert metrics.epochs["epoch"].tolist() == [1, 2, 3]
    assert all(values.dtype == np.float64 for values in metrics.steps.values())
    epoch, accuracy, error = metrics.of_epochs("val_accuracy", "val_standard_error")
    assert epoch.tolist() == [1, 2, 3]
    assert accuracy == pytest.approx([0.81, 0.82, 0.83])
    assert error.tolist() == [0.01] * 3
    assert metrics.last("margin") == 0.2
    assert metrics.of_steps("val_accuracy")[0].size == 0
    assert metrics.last("no_such_column") is None
    assert metrics.of_epochs("no_such_column", "nor_this")[2].size == 0


def test_empty_fields_further_columns_and_an_unfinished_line(tmp_path):
    # The further column is empty for longer than a reader would look ahead to guess its type.
    lines = [f"step,{i / 100},{i},0.5,,a word" for i in range(1, 60_000)]
    write_lines(tmp_path, "kind,epoch,step,loss,further,note", *lines, "step,600,60000,nan,7,a word")
    with open(tmp_path / "metrics.csv", "a") as handle:
        handle.write("step,601,60100,0.1")
    metrics = read_metrics(tmp_path)
    assert len(metrics.steps["step"]) == 60_000
    assert np.isnan(metrics.steps["loss"][-1])
    assert metrics.of_steps("further")[1].tolist() == [7]
    assert "note" not in metrics.steps
    assert metrics.last("loss") == 0.5


def test_what_a_killed_run_logged_after_its_checkpoint_is_replaced(tmp_path):
    header = "kind,epoch,step,loss"
    first = ["step,0.5,5,1", "step,1,10,2", "epoch,1,10,2", "step,1.5,15,99", "step,2,20,99", "epoch,2,20,99"]
    resumed = ["step,1.5,15,3", "step,2,20,4"]
    metrics = read_metrics(write_lines(tmp_path, header, *first, *resumed))
    assert metrics.steps["loss"].tolist() == [1, 2, 3, 4]
    metrics = read_metrics(write_lines(tmp_path, header, *first, resumed[0]))  # not yet as far as before
    assert metrics.steps["loss"].tolist() == [1, 2, 3]
    assert metrics.epochs["loss"].tolist() == [2]
    metrics = read_metrics(write_lines(tmp_path, header, *first, *resumed, "epoch,2,20,3.5"))
    assert metrics.epochs["loss"].tolist() == [2, 3.5]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        ("", "no metrics yet"),
        ("kind,epoch,step,loss\n", "no metrics yet"),
        ("kind,epoch,step,loss\nstep,1,1,low\n", "not a metrics file"),
        ("kind,epoch,step,loss\nstep,1,1\n", "not a metrics file"),
        ("a,b\n1,2\n", "no column"),
    ],
)
def test_runs_without_metrics(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_metrics(tmp_path)
    assert str(tmp_path / "metrics.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


# loss_figure


def test_one_run_and_three(tmp_path):
    runs = {f"run {n}": read_metrics(write_run(tmp_path / str(n), n)) for n in (3, 5, 12)}
    one = dict(list(runs.items())[:1])
    assert_drawn(loss_figure(one, tmp_path / "out" / "one"), tmp_path / "out" / "one")
    assert_drawn(loss_figure(runs, tmp_path / "out" / "three.png"), tmp_path / "out" / "three")
    text = (tmp_path / "out" / "one.svg").read_text()
    assert "best 0.8300 ± 0.0100, epoch 3" in text  # Matplotlib names each text in a comment
    assert "margin 0.2" in text
    assert "3 epochs  ·  3,600 images  ·  0:30" in text


@pytest.mark.parametrize(
    "without",
    [
        ("val_accuracy", "val_standard_error", "val_auc"),
        ("val_standard_error", "margin"),
        ("loss",),
        ("lr", "active_fraction"),
        ("distance_positive",),
        ("images", "seconds", "step"),
        tuple(COLUMNS[1:]),
    ],
    ids=lambda names: names[0],
)
def test_short_runs_that_lack_something(tmp_path, without):
    metrics = read_metrics(write_run(tmp_path / "run", 1, without=without))
    out = tmp_path / "out" / "loss"
    assert_drawn(loss_figure({"run": metrics}, out), out)


def test_runs_that_lack_something_beside_one_that_does_not(tmp_path):
    runs = {"run": 2, "other": 1}
    metrics = {
        name: read_metrics(
            write_run(tmp_path / name, epochs, without=("loss", "val_accuracy") * (epochs - 1))
        )
        for name, epochs in runs.items()
    }
    out = tmp_path / "out" / "loss"
    assert_drawn(loss_figure(metrics, out), out)


@pytest.mark.parametrize(
    "metrics",
    [
        Metrics(),
        Metrics(steps={"epoch": np.array([0.5]), "loss": np.array([0.3]), "lr": np.array([0.0])}),
        Metrics(epochs={"epoch": np.arange(3.0), "loss": np.array([np.nan, np.inf, -2.0])}),
        Metrics(epochs={"epoch": np.array([0.0]), "val_accuracy": np.array([0.5])}),
        Metrics(steps={name: np.full(5, np.nan) for name in HEADER}),
        Metrics(steps={"epoch": np.linspace(0, 1, 9), "loss": np.zeros(9), "lr": np.geomspace(1e-7, 1, 9)}),
    ],
    ids=["nothing", "one step", "nan", "epoch 0", "all nan", "zero loss"],
)
def test_odd_runs(tmp_path, metrics):
    out = tmp_path / "odd"
    assert_drawn(loss_figure({"odd": metrics}, out), out)


def test_names_that_mean_something_to_matplotlib(tmp_path):
    metrics = read_metrics(write_run(tmp_path / "run", 2))
    out = tmp_path / "out" / "lr_0.1"
    assert_drawn(
        loss_figure(dict.fromkeys(["_hidden", r"lr$\frac$", r"\frac", "脸" * 90], metrics), out), out
    )
    text = out.with_name("lr_0.1.svg").read_text()
    assert all(f"<!-- {label} -->" in text for label in (" _hidden", r"lr$\frac$", r"\frac"))


def test_a_crowd_of_runs(tmp_path):
    metrics = read_metrics(write_run(tmp_path / "run", 2))
    out = tmp_path / "out" / "crowd"
    runs = {f"run {n} {'x' * n}": metrics for n in range(40)} | {"not validated": Metrics()}
    assert_drawn(loss_figure(runs, out), out)
    text = out.with_name("crowd.svg").read_text()
    assert "<!-- run 7 xxxxxxx:  best 0.8200 ± 0.0100, epoch 2 -->" in text
    assert "<!-- not validated -->" in text


def test_the_same_data_give_the_same_files_and_leave_no_trace(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    runs = {"run": read_metrics(write_run(tmp_path / "run", 2))}
    first, again = (loss_figure(runs, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert dict(matplotlib.rcParams) == before


def test_thinning_keeps_ends_and_extremes():
    rng = np.random.default_rng(0)
    x, y = np.arange(100_003.0), rng.normal(size=100_003)
    y[[7, 5_000, 100_002]] = 50, -60, 70
    thin_x, thin_y = thinned(x, y, figures.STEP_POINTS)
    assert len(thin_x) == len(thin_y) <= 1.1 * figures.STEP_POINTS
    assert (np.diff(thin_x) > 0).all()
    assert (y[thin_x.astype(int)] == thin_y).all()
    assert {50, -60, 70} <= set(thin_y)
    few = thinned(x[:100], y[:100], figures.STEP_POINTS)
    assert (few[0] == x[:100]).all() and (few[1] == y[:100]).all()


# roc_figure


def curve(n: int, shift: float, *, refused: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    same = np.arange(n) % 2 == 0
    scores = rng.normal(size=n) + shift * same
    scores[:refused] = -np.inf
    return roc(scores, same)[:2]


def test_roc(tmp_path):
    from sklearn.metrics import auc as area_under

    results = {"good": curve(6000, 3.0), "poor": curve(600, 0.5, refused=30)}
    out = tmp_path / "roc.svg"
    assert_drawn(roc_figure(results, out), tmp_path / "roc")
    text = (tmp_path / "roc.svg").read_text()
    assert f"good:  AUC {area_under(*results['good']):.4f},  EER " in text


@pytest.mark.parametrize(
    "result",
    [roc([0.0, 1.0], [False, True]), roc([1.0, 0.0], [False, True]), roc([0.0, 0.0], [False, True])],
    ids=["perfect", "worst", "tied"],
)
def test_roc_of_one_pair_of_either_kind(tmp_path, result):
    assert_drawn(roc_figure({"tiny": result[:2]}, tmp_path / "roc"), tmp_path / "roc")


def test_the_drawn_curve_is_the_tar_at_each_far():
    far, tar = curve(20_000, 1.0)
    for left in (1e-4, 1e-2):
        x, y = staircase(far, tar, left, figures.ROC_POINTS)
        assert x[0] == left and x[-1] == pytest.approx(1) and y[-1] == 1
        assert len(x) <= figures.ROC_POINTS + 1
        for target, height in list(zip(x, y, strict=True))[::100]:
            assert height == tar[far <= target].max()


# Imports


def test_nothing_heavy_is_imported_until_it_is_needed():
    modules = "verification, pairs, metrics, figures"
    heavy = "{'torch', 'matplotlib', 'sklearn', 'pyarrow', 'cv2', 'dlib', 'nvidia', 'pandas'}"
    code = f"import sys; from facetrain.evaluate import {modules}; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_figures_do_without_pyplot(tmp_path):
    code = (
        "import sys; from pathlib import Path; from facetrain.evaluate import figures, metrics\n"
        "figures.loss_figure({'r': metrics.Metrics()}, Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], check=True)
    assert (tmp_path / "f.png").exists()
