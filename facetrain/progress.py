"""One progress bar for all long work: count, rate and ETA on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LOG_EVERY_S = 10.0  # in a log file, where a bar would be noise


def human_duration(seconds: float) -> str:
    """`75.2` → `1:15`; `4000` → `1:06:40`."""
    total = int(seconds + 0.5)
    hours, minutes, secs = total // 3600, total % 3600 // 60, total % 60
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """Context manager: ``with Progress("aligning", "photographs") as bar: bar.begin(120); bar.advance(8)``.

    ``note`` is a short text shown behind the counts (a loss, a number of bytes). The bar is written to stderr, so that
    stdout holds results alone. The rate is that of the whole run so far.
    """

    def __init__(self, description: str, unit: str) -> None:
        self.description, self.unit = description, unit
        self.total = self.done = self._skipped = 0
        self.note = ""
        self._started = self._last_log = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def begin(
        self, total: int, done: int = 0, *, description: str | None = None, unit: str | None = None
    ) -> None:
        """The work is known to be ``total`` units, of which ``done`` were done by an earlier run.

        Begun again, with another ``description`` and ``unit``, it shows the next part of the work.
        """
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self.description, self.unit = description or self.description, unit or self.unit
        self.total, self.done, self._skipped = total, done, done
        self._started = self._last_log = time.monotonic()
        if sys.stderr.isatty() and total:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[counts]}"),
                console=Console(stderr=True),
                transient=True,
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=total, completed=done, counts="")

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Report that ``count`` more units are done."""
        self.done += count
        if note is not None:
            self.note = note
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, counts=self._counts(now), refresh=True)
        elif now - self._last_log >= LOG_EVERY_S and self.total:
            self._last_log = now
            print(f"{self.description}: {self._counts(now)}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _counts(self, now: float) -> str:
        elapsed = max(now - self._started, 1e-9)
        rate = (self.done - self._skipped) / elapsed
        eta = human_duration((self.total - self.done) / rate) if rate > 0 else "?"
        rate_text = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        text = f"{self.done:,}/{self.total:,} {self.unit}  {rate_text}/s  {eta} left"
        return f"{text}  {self.note}" if self.note else text

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
