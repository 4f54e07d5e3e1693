"""Outcomes of rows, and errors: which end a run, and which concern one row."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RecordingError, RunError, failure_kind

Result = TypeVar("Result")

# These end a run, because every later file would fail too; other errors of the file system concern one file.
FATAL_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTDIR}  # the disk is full, fails, is another one
    | {errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}  # a mount is gone
)


# Numbers in a reason belong to one recording.
_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """The outcome of a row.

    Attributes:
        row: The row.
        result: The result; None if there is a reason why there is none.
        reason: Why there is no result.
        seconds: Seconds of audio.
        flags: What is odd about the recording, in words.
        conversions: How it was converted to the model's input; see `audio.channels.conversions`.
        kind: The kind of the failure; see `run_error.FAILURE_KINDS`. None: it did not fail.
        cached: Whether the result is from an earlier run.
    """

    row: Row
    result: Result | None
    reason: str | None
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    conversions: tuple[str, ...] = ()
    kind: str | None = None
    cached: bool = False

    @property
    def underflowed(self) -> int:
        """Values of the result that became 0 when it was stored; 0 for results without such a count."""
        return getattr(self.result, "underflowed", 0)


@dataclass(frozen=True)
class CachedResult(Generic[Result]):
    """The result of a row from an earlier run, with what was known of the recording. samples: of its waveform."""

    result: Result
    samples: int
    sample_rate: int
    flags: tuple[str, ...]
    conversions: tuple[str, ...] = ()


def failed_outcome(row: Row, error: ValueError) -> Outcome[Any]:
    """Return the outcome of a row that cannot be used."""
    return Outcome(row, None, str(error), kind=failure_kind(error))


def write_error(path: Path, error: OSError) -> Exception:
    """Return what to raise if a result cannot be written: a RunError, or a ValueError that concerns this row only."""
    if error.errno in FATAL_ERRORS:
        return RunError(f"cannot write {path}: {error.strerror}")
    return RecordingError(f"its result cannot be written: {error.strerror or error}", kind="not_written")


def kind_of(reason: str) -> str:
    """Return a reason with its numbers masked: the same for all recordings that fail with the same sentence."""
    return _NUMBER.sub(lambda number: "…" + number[0][len(number[0].rstrip(".,")) :], reason)


def row_failure(error: Exception) -> ValueError:
    """Return an error as the failure of one row, without references to tensors; re-raise an error of another kind."""
    if isinstance(error, ValueError):
        return RecordingError(str(error), kind=failure_kind(error))
    if is_out_of_memory(error):
        return RecordingError("does not fit into memory: cut it into pieces", kind="out_of_memory")
    raise error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out. On a CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def cannot_write(output: Path, error: OSError) -> Exception:
    """Return the exception to raise if an output cannot be written.

    A ValueError if the request names an unwritable folder; a RunError if the user can mend it, such as a full disk.
    """
    text = f"cannot write to {output}: {error.strerror or error}"
    wrong = error.errno in (errno.EROFS, errno.ENOTDIR) or error.errno not in FATAL_ERRORS
    return ValueError(f"{text}. Name another output") if wrong else RunError(text)
