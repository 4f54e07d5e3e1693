"""A run over a corpus: recordings read ahead, a model, results written behind it, and a ledger of failures.

Three things go on at once: threads decode the next recordings, the caller's thread runs the model on a batch, and
threads write what came out of the batch before. See `feeding` for the first.
"""

import errno
import json
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from w2v_attn.audio.reading import Recording, read_recording
from w2v_attn.corpus.rows import Row
from w2v_attn.feeding import LEAST_AHEAD, MOST_WAITING, WINDOW, Budget, ReadAhead, batches, reader_threads

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Result = TypeVar("Result")
Batch = Sequence[tuple[Row, Recording]]

LEDGER = "failures.jsonl"
# What ends a run, for the next file would meet it too; other errors of the file system concern one file.
FATAL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTDIR})
# The budget of a model that takes one recording at a time: none fits in, so each is a batch of its own.
ONE_BY_ONE = 0


class RunError(Exception):
    """The run cannot go on. What was written stays, and the same command takes it up."""


class Model(Protocol):
    """What a run must know of a model to feed it; see `encoder.waveforms.WaveformModel`."""

    device: torch.device

    @property
    def sample_rate(self) -> int: ...

    def check_waveform(self, waveform: Tensor) -> None: ...

    def count_frames(self, samples: int) -> int: ...


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
    model: Model,
    process: Callable[[Batch], Sequence[Found | ValueError]],
    finish: Callable[[Row, Recording, Found], Result],
    *,
    max_duration: float,
    budget: int,
    writers: int = 1,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome[Result]]:
    """Reads every row's recording, processes and finishes it; yields what became of it when it is finished.

    process: what the model finds in each recording of a batch, in the caller's thread; a ValueError in its place where
        the recording cannot be used, its text is the reason. Where it raises one, or is out of memory, the batch is
        tried again in halves; memory that was short once bounds the batches that follow.
    finish: writes what was found, in a thread beside the model; what it gives is the outcome's result. Raises
        ValueError where the recording cannot be used. It leaves computing to `process`: a product of torch's in a
        second thread makes all of them on a CPU slower, for OpenMP then has more threads than cores.
    max_duration: seconds; longer recordings are not used. budget: frames of a batch, or `ONE_BY_ONE`.
    writers: threads that finish results; with one, they are finished in the order of the outcomes.
    interrupted: asked between batches; where it says so, what is computed is finished, and the run ends.

    Outcomes come batch by batch: within a window of some batches the longer recordings first; ONE_BY_ONE in the order
    of the rows. A row that cannot be used is written to `failures.jsonl` in the output folder, with its reason, and the
    run goes on; at the end that file is in the order of the rows.

    Closed before its end, it finishes the results that writers have in hand and drops the others.

    Raises:
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    limit = Budget(budget)
    reading = ReadAhead(
        range(len(rows)),
        lambda number: _read(number, rows[number], model, max_duration),
        threads=reader_threads(model.device.type),
        most_items=MOST_WAITING,
        most_frames=max(WINDOW * budget, LEAST_AHEAD),
        stopped=interrupted,
    )
    unfinished: deque[tuple[int, Future[Outcome[Result]]]] = deque()
    with _Ledger(output) as ledger, _writers(writers) as pool, reading:

        def finished(*, wait: bool) -> Iterator[Outcome[Result]]:
            while unfinished and (wait or unfinished[0][1].done()):
                number, future = unfinished.popleft()
                outcome = future.result()
                ledger.note(number, outcome.row, outcome.reason)
                yield outcome

        for batch in batches(reading, limit):
            if interrupted():
                break
            yield from finished(wait=False)
            results = _process(process, batch, limit)
            # The results of two batches at most: of the one that is being written, and of the one that waits for it.
            yield from finished(wait=any(not isinstance(result, ValueError) for result in results))
            for read, result in zip(batch, results, strict=True):
                ledger.note(read.number, read.row, str(result) if isinstance(result, ValueError) else None)
                unfinished.append((read.number, pool.submit(_finish, finish, read, result)))
            del batch, results, read, result
        yield from finished(wait=True)


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


@dataclass(frozen=True)
class _Read:
    """A row and its recording, or why there is none. frames: what the model makes of it."""

    number: int
    row: Row
    recording: Recording | ValueError
    frames: int


def _read(number: int, row: Row, model: Model, max_duration: float) -> _Read:
    try:
        recording = read_row(row, sample_rate=model.sample_rate, max_duration=max_duration)
        model.check_waveform(recording.waveform)
    except Exception as error:
        return _Read(number, row, _failure(error), frames=0)
    return _Read(number, row, recording, model.count_frames(len(recording.waveform)))


def _process(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[_Read], limit: Budget
) -> Sequence[Found | ValueError]:
    """What the model finds in each of a batch; a batch that fails is taken apart until it is known what failed."""
    if isinstance(batch[0].recording, ValueError):  # `batches` leaves it alone
        return [batch[0].recording]
    try:
        return process([(read.row, read.recording) for read in batch if isinstance(read.recording, Recording)])
    except Exception as error:
        failure, memory_is_short = _failure(error), _out_of_memory(error)
    # From here on nobody holds the error, nor the tensors that its frames hold.
    if memory_is_short:
        torch.cuda.empty_cache()  # blocks of other sizes; does nothing where no GPU is in use
    if len(batch) == 1:
        return [failure]
    frames = sum(read.frames for read in batch)
    if memory_is_short and frames // 2 < limit.frames:
        limit.frames = max(1, frames // 2)
        logger.warning("%d frames do not fit into memory: batches of %d from here on", frames, limit.frames)
    half = len(batch) // 2
    return [*_process(process, batch[:half], limit), *_process(process, batch[half:], limit)]


def _finish(
    finish: Callable[[Row, Recording, Found], Result], read: _Read, found: Found | ValueError
) -> Outcome[Result]:
    if isinstance(found, ValueError):
        return Outcome(read.row, None, str(found))
    assert isinstance(read.recording, Recording)
    try:
        result = finish(read.row, read.recording, found)
    except Exception as error:
        return Outcome(read.row, None, str(_failure(error)))
    return Outcome(read.row, result, None, read.recording.duration, read.recording.flags)


def _failure(error: Exception) -> ValueError:
    """What an error says of one row, as one that holds no frames; raises it again where it is not about a row."""
    if isinstance(error, ValueError):
        return ValueError(str(error))
    if _out_of_memory(error):
        return ValueError("does not fit into memory: cut it into pieces")
    raise error


def _out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def _writers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that finish results; when it is left, what none of them has begun is dropped."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Ledger:
    """`failures.jsonl` of this run: each failure as soon as it is known; when it is closed, in the order of the rows.

    Raises:
        RunError: the output cannot be written.
    """

    def __init__(self, output: Path):
        self._path = output / LEDGER
        self._numbers: dict[int, None] = {}  # of the rows, in the order of the lines
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)  # of the run before this one
        except OSError as error:
            raise RunError(f"cannot write to {output}: {error.strerror or error}") from error

    def __enter__(self) -> "_Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        numbers = list(self._numbers)
        if numbers == sorted(numbers):
            return
        # Where the disk is full, the lines stay as they came: none is missing.
        with suppress(OSError):
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            lines = [line for _, line in sorted(zip(numbers, lines, strict=True))]
            temporary = self._path.with_name(f".{LEDGER}")
            temporary.write_text("".join(lines), encoding="utf-8")
            os.replace(temporary, self._path)

    def note(self, number: int, row: Row, reason: str | None) -> None:
        """The reason of a row, whose number it is, once; None: there is nothing to note."""
        if reason is None or number in self._numbers:
            return
        line = json.dumps({"id": row.id, "path": os.fspath(row.path), "reason": reason})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        self._numbers[number] = None
