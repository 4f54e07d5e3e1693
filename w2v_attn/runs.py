"""A run over a corpus: each recording read and handed on, one outcome for each row, a ledger of those that failed."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from w2v_attn.audio.reading import Recording, read_recording
from w2v_attn.corpus.rows import Row

Result = TypeVar("Result")

LEDGER = "failures.jsonl"
# What ends a run, for the next file would meet it too; other errors of the file system concern one file.
FATAL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTDIR})


class RunError(Exception):
    """The run cannot go on. What was written stays, and the same command takes it up."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of a row. result: None where there is a reason why there is none. seconds: of audio."""

    row: Row
    result: Result | None
    reason: str | None
    seconds: float = 0.0
    flags: tuple[str, ...] = ()


def run(
    rows: Sequence[Row],
    output: Path,
    process: Callable[[Row, Recording], Result],
    *,
    sample_rate: int,
    max_duration: float,
) -> Iterator[Outcome[Result]]:
    """Reads every row's recording and processes it; yields what became of it when that is known.

    process: raises ValueError where this recording cannot be used; its text is the reason.

    A row that cannot be used is written to `failures.jsonl` in the output folder, with its reason, and the run goes on.

    Raises:
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    ledger = output / LEDGER
    try:
        output.mkdir(parents=True, exist_ok=True)
        ledger.unlink(missing_ok=True)  # of the run before this one
    except OSError as error:
        raise RunError(f"cannot write to {output}: {error.strerror or error}") from error
    for row in rows:
        outcome = _outcome(row, process, sample_rate, max_duration)
        if outcome.reason is not None:
            _note_failure(ledger, outcome)
        yield outcome


def read_row(row: Row, *, sample_rate: int, max_duration: float = float("inf")) -> Recording:
    """The recording that a row means, or that part of it.

    Raises:
        AudioError: see `read_recording`.
    """
    part = {"sample_rate": sample_rate, "max_duration": max_duration, "offset": row.offset, "duration": row.duration}
    if row.content is None:
        return read_recording(row.path, **part)
    # The decoders read by descriptor.
    with tempfile.NamedTemporaryFile(suffix=row.path.suffix) as file:
        file.write(row.content())
        file.flush()
        return read_recording(file.name, **part)


def write_failed(path: Path, error: OSError) -> Exception:
    """What to raise where a result could not be written: the end of the run, or of this row only."""
    if error.errno in FATAL_ERRORS:
        return RunError(f"cannot write {path}: {error.strerror}")
    return ValueError(f"its result cannot be written: {error.strerror or error}")


def _outcome(
    row: Row, process: Callable[[Row, Recording], Result], sample_rate: int, max_duration: float
) -> Outcome[Result]:
    try:
        recording = read_row(row, sample_rate=sample_rate, max_duration=max_duration)
        result = process(row, recording)
    except ValueError as error:
        return Outcome(row, None, str(error))
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        return Outcome(row, None, "does not fit into memory: cut it into pieces")
    return Outcome(row, result, None, recording.duration, recording.flags)


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _note_failure(ledger: Path, outcome: Outcome) -> None:
    line = json.dumps({"id": outcome.row.id, "path": os.fspath(outcome.row.path), "reason": outcome.reason})
    try:
        with ledger.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise RunError(f"cannot write {ledger}: {error.strerror}") from error
