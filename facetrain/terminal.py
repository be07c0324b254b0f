"""What a person sees of a training: a bar with rate and ETA, and a line after every epoch."""

from __future__ import annotations

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

    def epoch(self, values: dict[str, float], epochs: int) -> None:
        parts = [f"epoch {values['epoch']:.0f}/{epochs}", f"loss {values['loss']:.4f}"]
        if "active_fraction" in values:
            parts.append(f"active {values['active_fraction']:.0%}")
        if "train_accuracy" in values:
            parts.append(f"recognised {values['train_accuracy']:.0%}")
        if "val_accuracy" in values:
            parts.append(f"validation {values['val_accuracy']:.4f} ± {values['val_standard_error']:.4f}")
        self.bar.say("  ".join([*parts, human_duration(values["seconds"])]))

    def warn(self, line: str) -> None:
        self.bar.say(f"warning: {line}")
