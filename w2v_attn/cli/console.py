"""Tables on the terminal, and readable sizes and durations."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120


class RaisingConsole(Console):
    """rich's console, but a broken pipe raises BrokenPipeError instead of ending the process."""

    def on_broken_pipe(self) -> None:
        """Re-raise the BrokenPipeError that is being handled."""
        raise


def console(*, stderr: bool = False) -> RaisingConsole:
    """Return a console, with a fixed width where it is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return RaisingConsole(stderr=stderr, width=None if stream.isatty() else PLAIN_WIDTH, soft_wrap=not stream.isatty())


def table(title: str, rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> Table:
    """Return a table; without a header, with names on the left and values on the right."""
    # Text, because rich would read brackets in a plain string, such as a file name, as markup.
    made = Table(title=Text(title), title_justify="left", show_header=bool(header))
    for number, name in enumerate(header or ("", "")):
        made.add_column(name, overflow="fold", style="bold" if number == 0 else "")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def show(title: str, rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> None:
    """Print a table."""
    console().print(table(title, rows, header=header))


def span(seconds: float) -> str:
    """Return a duration in at most two units: 0.3 s, 45 s, 12 min, 3 h 05 min, 2 d 04 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days:,} d {hours:02} h"


def size(count: float) -> str:
    """Return a number of bytes in decimal units: 17 kB, 1.2 TB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit in ("bytes", "kB") else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
