"""What a person sees of a training: a bar with rate and ETA, and a line after every epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from facetrain.progress import Progress, human_duration


class TrainReporter:
    """Implements `facetrain.train.loop.Reporter` on a terminal."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self._step = 0

    def start(self, step: int, total_steps: int) -> None:
        self._step = step
        self.bar.begin(total_steps, step)

    def step(self, step: int, note: str) -> None:
        self.bar.advance(step - self._step, note)
        self._step = step

    def epoch(self, values: dict[str, float], epochs: int, measured: Sequence[str]) -> None:
        parts = [f"epoch {values['epoch']:.0f}/{epochs}", f"loss {values['loss']:.4f}"]
        if "active_fraction" in values:
            parts.append(f"active {values['active_fraction']:.0%}")
        if "train_accuracy" in values:
            parts.append(f"recognised {values['train_accuracy']:.0%}")
        parts += measured_texts(values, measured)
        self.bar.say("  ".join([*parts, human_duration(values["seconds"])]))

    def validated(self, values: dict[str, float], measured: Sequence[str]) -> None:
        self.bar.say("  ".join([f"step {values['step']:,}", *measured_texts(values, measured)]))

    def warn(self, line: str) -> None:
        self.bar.say(f"warning: {line}")


def measured_texts(values: dict[str, float], columns: Sequence[str]) -> list[str]:
    """``validation 0.8400 ± 0.0106``: of each column its value, with the standard error where there is one."""
    texts = []
    for column in columns:
        name, _, figure = column.partition("_")
        name = f"{'validation' if name == 'val' else name}{'' if figure == 'accuracy' else f' {figure}'}"
        error = values.get(f"{column.removesuffix('accuracy')}standard_error", math.nan)
        texts.append(f"{name} {values[column]:.4f}" + (f" ± {error:.4f}" if error == error else ""))
    return texts
