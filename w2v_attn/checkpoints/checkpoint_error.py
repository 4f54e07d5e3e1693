"""`CheckpointError` and the formatting of its messages."""

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message says what was expected, what was found and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, at most 300 characters, to quote inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def list_lines(lines: Sequence[str], max_lines: int = 20) -> str:
    """Join the lines of an indented list; after the first `max_lines`, say how many more there are."""
    more = f"\n  … and {len(lines) - max_lines} more" if len(lines) > max_lines else ""
    return "\n  ".join(lines[:max_lines]) + more
