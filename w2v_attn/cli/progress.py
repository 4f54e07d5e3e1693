"""How far a run is: a bar with time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from w2v_attn.cli import console
from w2v_attn.runs.run_stats import RunStats, Throughput

# Seconds between two lines where there is no terminal, and of the time so far: a run of two days writes some hundred.
LEAST_PLAIN, MOST_PLAIN, PLAIN_SHARE = 10.0, 600.0, 0.1
# Seconds between two states of a bar: thousands of recordings that are there already go by in one.
DRAWN = 0.1


class PlainLines:
    """Lines for a log file, with their time: often at first, seldom later on."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started

    def due(self) -> bool:
        """Whether it is time for one."""
        now = time.monotonic()
        return now - self._last >= min(MOST_PLAIN, max(LEAST_PLAIN, PLAIN_SHARE * (now - self._started)))

    def write(self, line: str) -> None:
        """One line."""
        self._last = time.monotonic()
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)


class RunProgress:
    """A run as it goes: recordings, failures, speeds and time left; a bar on a terminal, lines elsewhere.

    rows: how many there are.
    """

    def __init__(self, rows: int, pace: Throughput, tally: RunStats):
        self._rows, self._pace, self._tally = rows, pace, tally
        self._lines, self._drawn = PlainLines(), 0.0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=console.console(stderr=True),
            )
            self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> "RunProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._pace.done, description=self._said())
            self._bar.stop()

    def update(self) -> None:
        """There are news in the pace and in the tally."""
        if self._bar is not None:
            if time.monotonic() - self._drawn >= DRAWN:
                self._drawn = time.monotonic()
                self._bar.update(self._task, completed=self._pace.done, description=self._said())
        elif self._lines.due():
            self._lines.write(f"{self._pace.done:.0%} {self._said()}")

    def _said(self) -> str:
        tally, pace = self._tally, self._pace
        parts = [f"{tally.reached:,} of {self._rows:,}"]
        if tally.cached:
            parts.append(f"{tally.cached:,} kept")
        if tally.failed:
            parts.append(f"{tally.failed:,} failed")
        if (recordings := pace.recordings_per_second) is not None and (times := pace.times_real_time) is not None:
            parts += [f"{recordings:,.1f}/s", f"{times:,.1f} × real time"]
        if (left := pace.left) is not None:
            parts.append(f"{console.span(left)} left")
        return ", ".join(parts)


class ProgressLine:
    """How far work is, and how long it still takes: a bar on a terminal, lines elsewhere."""

    def __init__(self, total: float, what: str):
        self._total, self._done, self._count, self._failed = max(total, 1.0), 0.0, 0, 0
        self._what = what
        self._lines = PlainLines()
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
                console=console.console(stderr=True),
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
        if self._lines.due():
            left = self._lines.elapsed * (self._total / max(self._done, 1e-9) - 1)
            share = self._done / self._total
            self._lines.write(f"{self._count} {self._what}{failures}, {share:.0%}, {console.span(left)} left")


class TrainingProgress:
    """Takes the part of `finetuning.watching.Watcher`: the report, a line or a bar with time left, each validation.

    interrupted: whether somebody asked for the end.
    """

    def __init__(self, interrupted: Callable[[], bool]):
        self.interrupted = interrupted
        self._screen = console.console(stderr=True)
        self._bar: Progress | None = None
        self._started, self._lines = time.monotonic(), PlainLines()
        self._first = self._updates = 0

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def surveyed(self, rows: Iterable[tuple[str, str]]) -> None:
        """The report before training."""
        self._stop()
        console.show("Before training", rows)

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
        elif self._lines.due():
            left = (time.monotonic() - self._started) * (total - done) / max(done - first, 1)
            self._lines.write(f"{done}/{total} {what}, {console.span(left)} left")

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(Text(line))
        else:
            print(line, file=sys.stderr, flush=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
