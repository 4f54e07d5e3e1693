"""What becomes of a row, and what ends a run."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from w2v_attn.corpus.rows import Row

Result = TypeVar("Result")

# What ends a run, for the next file would meet it too; other errors of the file system concern one file.
FATAL_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTDIR}  # the disk is full, fails, is another one
    | {errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}  # a mount is gone
)


# Numbers in a reason are those of one recording.
_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")


class RunError(Exception):
    """The run cannot go on. What was written stays, and the same command takes it up."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of a row. result: None where there is a reason why there is none. seconds: of audio.

    kept: whether the result is that of a run before this one.
    """

    row: Row
    result: Result | None
    reason: str | None
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    kept: bool = False

    @property
    def underflowed(self) -> int:
        """Values of the result that became 0 when it was stored; results that say nothing of them have none."""
        return getattr(self.result, "underflowed", 0)


@dataclass(frozen=True)
class Settled(Generic[Result]):
    """What a run before this one made of a row, and what it knew of the recording. samples: of its waveform."""

    result: Result
    samples: int
    sample_rate: int
    flags: tuple[str, ...]


def write_failed(path: Path, error: OSError) -> Exception:
    """What to raise where a result could not be written: the end of the run, or of this row only."""
    if error.errno in FATAL_ERRORS:
        return RunError(f"cannot write {path}: {error.strerror}")
    return ValueError(f"its result cannot be written: {error.strerror or error}")


def kind_of(reason: str) -> str:
    """A reason without the numbers in it: what recordings have in common that fail in the same way."""
    return _NUMBER.sub(lambda number: "…" + number[0][len(number[0].rstrip(".,")) :], reason)
