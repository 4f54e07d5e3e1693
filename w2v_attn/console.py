"""What people see: tables, and a progress line on a terminal or plain lines elsewhere. Used by app.py alone."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120
PLAIN_SECONDS = 10.0


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide enough for whole rows where it is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PLAIN_WIDTH, soft_wrap=not stream.isatty())


def table(title: str, rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> Table:
    """A table; without a header, names on the left and values on the right."""
    # Text: in a plain string rich would read the brackets of a file name as its own markup.
    made = Table(title=Text(title), title_justify="left", show_header=bool(header))
    for number, name in enumerate(header or ("", "")):
        made.add_column(name, overflow="fold", style="bold" if number == 0 else "")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


class ProgressLine:
    """How far a run is, and how long it still takes: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total: float, what: str):
        self._total, self._done, self._count, self._failed = max(total, 1.0), 0.0, 0, 0
        self._what = what
        self._started = self._last = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("so far,"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console(stderr=True),
                speed_estimate_period=120,  # many outcomes at once, and then none for a batch
            )
            self._task = self._bar.add_task(what, total=self._total)

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: float, *, failed: bool) -> None:
        """One recording more; amount: its share of the total."""
        self._done += amount
        self._count += 1
        self._failed += failed
        failures = f", {self._failed} failed" if self._failed else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=f"{self._count} {self._what}{failures}")
            return
        now = time.monotonic()
        if now - self._last >= PLAIN_SECONDS:
            self._last = now
            left = (now - self._started) * (self._total / max(self._done, 1e-9) - 1)
            share = self._done / self._total
            print(f"{self._count} {self._what}{failures}, {share:.0%}, {left:.0f} s left", file=sys.stderr, flush=True)


class TrainingProgress:
    """Takes the part of `finetuning.watching.Watcher`: the report, a line or a bar with time left, each validation.

    interrupted: whether somebody asked for the end.
    """

    def __init__(self, interrupted: Callable[[], bool]):
        self.interrupted = interrupted
        self._screen = console(stderr=True)
        self._bar: Progress | None = None
        self._last = self._started = time.monotonic()
        self._first = self._updates = 0

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def surveyed(self, rows: Iterable[tuple[str, str]]) -> None:
        """The report before training."""
        self._stop()
        console().print(table("Before training", rows))

    def reading(self, done: int, total: int) -> None:
        """So many recordings were read."""
        self._show(done, total, "recordings read")

    def begun(self, update: int, updates: int) -> None:
        """Training begins after so many updates."""
        self._stop()
        self._first, self._updates, self._started = update, updates, time.monotonic()
        if update:
            self._print(f"goes on after update {update} of {updates}")

    def updated(self, update: int, loss: float) -> None:
        """Updates are done."""
        self._show(update, self._updates, f"updates, loss {loss:.3f}", self._first)

    def evaluated(self, update: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None:
        """A validation is done."""
        said = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"update {update}: {said}{' (the best so far)' if best else ''}")
        if warning:
            self._print(f"update {update}: {warning}")

    def _show(self, done: int, total: int, what: str, first: int = 0) -> None:
        now = time.monotonic()
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("{task.completed}/{task.total} {task.description}"),
                    BarColumn(),
                    TimeElapsedColumn(),
                    TextColumn("so far,"),
                    TimeRemainingColumn(),
                    TextColumn("left"),
                    console=self._screen,
                    speed_estimate_period=120,
                )
                self._task = self._bar.add_task(what, total=total)
                self._bar.start()
            self._bar.update(self._task, completed=done, total=total, description=what)
        elif now - self._last >= PLAIN_SECONDS:
            self._last = now
            left = (now - self._started) * (total - done) / max(done - first, 1)
            print(f"{done}/{total} {what}, {left:.0f} s left", file=sys.stderr, flush=True)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(Text(line))
        else:
            print(line, file=sys.stderr, flush=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
