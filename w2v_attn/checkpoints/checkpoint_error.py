"""`CheckpointError` and the formatting of its messages."""

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message says what was expected, what was found and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, at most 300 characters, to quote inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def list_lines(lines: Sequence[str], most: int = 20) -> str:
    """Join the lines of an indented list; after the first `most`, say how many more there are."""
    more = f"\n  … and {len(lines) - most} more" if len(lines) > most else ""
    return "\n  ".join(lines[:most]) + more
