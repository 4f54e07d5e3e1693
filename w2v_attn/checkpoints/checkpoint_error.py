"""What is raised when a checkpoint cannot be used."""

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The text says what was expected, what was found, and the way out."""


def first_line(error: BaseException) -> str:
    """The beginning of what another library says, short enough to stand inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def list_lines(lines: Sequence[str], most: int = 20) -> str:
    """Lines of a message, each on its own; of many the first, and how many more there are."""
    more = f"\n  … and {len(lines) - most} more" if len(lines) > most else ""
    return "\n  ".join(lines[:most]) + more
