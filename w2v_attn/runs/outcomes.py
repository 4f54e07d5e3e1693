"""What becomes of a row, and what ends a run."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError

Result = TypeVar("Result")

# What ends a run, for the next file would meet it too; other errors of the file system concern one file.
FATAL_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTDIR}  # the disk is full, fails, is another one
    | {errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}  # a mount is gone
)


# Numbers in a reason are those of one recording.
_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")


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
    cached: bool = False

    @property
    def underflowed(self) -> int:
        """Values of the result that became 0 when it was stored; results that say nothing of them have none."""
        return getattr(self.result, "underflowed", 0)


@dataclass(frozen=True)
class CachedResult(Generic[Result]):
    """What a run before this one made of a row, and what it knew of the recording. samples: of its waveform."""

    result: Result
    samples: int
    sample_rate: int
    flags: tuple[str, ...]


def write_error(path: Path, error: OSError) -> Exception:
    """What to raise where a result could not be written: the end of the run, or of this row only."""
    if error.errno in FATAL_ERRORS:
        return RunError(f"cannot write {path}: {error.strerror}")
    return ValueError(f"its result cannot be written: {error.strerror or error}")


def kind_of(reason: str) -> str:
    """A reason without the numbers in it: what recordings have in common that fail in the same way."""
    return _NUMBER.sub(lambda number: "…" + number[0][len(number[0].rstrip(".,")) :], reason)


def row_failure(error: Exception) -> ValueError:
    """What an error says of one row, as one that holds no frames; raises it again where it is not about a row."""
    if isinstance(error, ValueError):
        return ValueError(str(error))
    if is_out_of_memory(error):
        return ValueError("does not fit into memory: cut it into pieces")
    raise error


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that memory was short; on a CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def cannot_write(output: Path, error: OSError) -> Exception:
    """The request is wrong where it names a folder that cannot be written; a full disk can be mended."""
    text = f"cannot write to {output}: {error.strerror or error}"
    wrong = error.errno in (errno.EROFS, errno.ENOTDIR) or error.errno not in FATAL_ERRORS
    return ValueError(f"{text}. Name another output") if wrong else RunError(text)
