"""Progress of runs and of training: a bar with the remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from w2v_attn.cli import console
from w2v_attn.runs.run_stats import RunStats, Throughput

# Bounds of the seconds between two lines where there is no terminal, and their share of the elapsed time: a run of two
# days writes a few hundred lines.
MIN_LINE_SECONDS, MAX_LINE_SECONDS, LINE_SHARE = 10.0, 600.0, 0.1
# Seconds between two updates of a bar: a resumed run passes thousands of finished recordings in that time.
BAR_SECONDS = 0.1


class PlainLines:
    """Lines with their time for a log file: frequent at first, rarer later."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def due(self) -> bool:
        """Return whether it is time for a line."""
        now = time.monotonic()
        return now - self._last >= min(MAX_LINE_SECONDS, max(MIN_LINE_SECONDS, LINE_SHARE * (now - self._started)))

    def write(self, line: str) -> None:
        """Write a line."""
        self._last = time.monotonic()
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)


class RunProgress:
    """Progress of a run over a corpus: recordings, failures, throughput and remaining time.

    Args:
        rows: Number of recordings.
        throughput: Speed of the run, which the caller updates.
        stats: Counts of the run, which the caller updates.
    """

    def __init__(self, rows: int, throughput: Throughput, stats: RunStats):
        self._rows, self._throughput, self._stats = rows, throughput, stats
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
            self._bar.update(self._task, completed=self._throughput.done, description=self._text())
            self._bar.stop()

    def update(self) -> None:
        """Show the present throughput and counts, if it is time to."""
        if self._bar is not None:
            if time.monotonic() - self._drawn >= BAR_SECONDS:
                self._drawn = time.monotonic()
                self._bar.update(self._task, completed=self._throughput.done, description=self._text())
        elif self._lines.due():
            self._lines.write(f"{self._throughput.done:.0%} {self._text()}")

    def _text(self) -> str:
        stats, throughput = self._stats, self._throughput
        parts = [f"{stats.reached:,} of {self._rows:,}"]
        if stats.cached:
            parts.append(f"{stats.cached:,} kept")
        if stats.failed:
            parts.append(f"{stats.failed:,} failed")
        recordings, times = throughput.recordings_per_second, throughput.times_real_time
        if recordings is not None and times is not None:
            parts += [f"{recordings:,.1f}/s", f"{times:,.1f} × real time"]
        if (left := throughput.left) is not None:
            parts.append(f"{console.span(left)} left")
        return ", ".join(parts)


class ProgressLine:
    """Progress of any work, with the remaining time.

    Args:
        total: Amount of the work, in any unit.
        what: The plural of what is counted, such as "recordings".
    """

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
                speed_estimate_period=120,  # outcomes arrive in batches
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
        """Count one item that is done; amount: its part of the total."""
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
    """A `TrainingListener` that shows the report, a line or a bar with the remaining time, and each validation.

    Args:
        interrupted: Returns whether training shall save a checkpoint and end.
    """

    def __init__(self, interrupted: Callable[[], bool]):
        self.interrupted = interrupted
        self._screen = console.console(stderr=True)
        self._bar: Progress | None = None
        self._started, self._lines = time.monotonic(), PlainLines()
        self._first = self._steps = 0

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def on_data_report(self, rows: Iterable[tuple[str, str]]) -> None:
        """Show the report before training."""
        self._stop()
        console.show("Before training", rows)

    def on_recordings_read(self, done: int, total: int) -> None:
        """Show how many recordings are read."""
        self._show(done, total, "recordings read")

    def on_train_begin(self, step: int, max_steps: int) -> None:
        """Show where training resumes; `step` is 0 where it starts."""
        self._stop()
        self._first, self._steps, self._started = step, max_steps, time.monotonic()
        if step:
            self._print(f"resumes after step {step} of {max_steps}")

    def on_step(self, step: int, loss: float) -> None:
        """Show the number of steps that are done."""
        self._show(step, self._steps, f"steps, loss {loss:.3f}", self._first)

    def on_evaluate(self, step: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None:
        """Show the metrics of a validation, and a warning about it."""
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"step {step}: {values}{' (the best so far)' if best else ''}")
        if warning:
            self._print(f"step {step}: {warning}")

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
