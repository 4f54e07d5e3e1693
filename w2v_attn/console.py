"""What people see: tables, and a progress line on a terminal or plain lines elsewhere. Used by app.py alone."""

import sys
import time
from collections.abc import Iterable, Sequence

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
