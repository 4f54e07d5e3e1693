"""A run over a corpus: recordings read ahead, a model, results written behind it, and a ledger of failures.

Three things go on at once: threads decode the next recordings, the caller's thread runs the model on a batch, and
threads write what came out of the batch before. See `feeding` for the first.

A run that goes on where another one ended makes the same batches of the same list: features agree to the bit only
where the blocking of the products does, and that depends on a batch as a whole. So a batch whose results are all there
is passed over, and one of which something is missing is computed whole, and only what is missing is written.
"""

import errno
import hashlib
import json
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from w2v_attn.audio.decoders import AudioError
from w2v_attn.audio.reading import Recording, read_recording
from w2v_attn.corpus.rows import Row
from w2v_attn.feeding import LEAST_AHEAD, MOST_WAITING, WINDOW, ReadAhead, batches, reader_threads
from w2v_attn.whole_files import write_whole

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Result = TypeVar("Result")
Batch = Sequence[tuple[Row, Recording]]

LEDGER = "failures.jsonl"
# What ends a run, for the next file would meet it too; other errors of the file system concern one file.
FATAL_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTDIR}  # the disk is full, fails, is another one
    | {errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}  # a mount is gone
)
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
    """What became of a row. result: None where there is a reason why there is none. seconds: of audio.

    kept: whether the result is that of a run before this one.
    """

    row: Row
    result: Result | None
    reason: str | None
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    kept: bool = False


@dataclass(frozen=True)
class Settled(Generic[Result]):
    """What a run before this one made of a row, and what it knew of the recording. samples: of its waveform."""

    result: Result
    samples: int
    sample_rate: int
    flags: tuple[str, ...]


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
    settled: Callable[[Row], Settled[Result] | None] = lambda row: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Generator[Outcome[Result], None, None]:
    """Reads every row's recording, processes and finishes it; yields what became of it when it is finished.

    process: what the model finds in each recording of a batch, in the caller's thread; a ValueError in its place where
        the recording cannot be used, its text is the reason. Where it raises one, or is out of memory, the batch is
        tried again in halves; memory that was short once lets later batches be taken in parts from the start.
    finish: writes what was found, in a thread beside the model; what it gives is the outcome's result. Raises
        ValueError where the recording cannot be used. It leaves computing to `process`: a product of torch's in a
        second thread makes all of them on a CPU slower, for OpenMP then has more threads than cores.
    max_duration: seconds; longer recordings are not used. budget: frames of a batch, or `ONE_BY_ONE`.
    writers: threads that finish results; with one, they are finished in the order of the outcomes.
    settled: what a run before this one left of a row, if that counts; asked in the threads that read. What it raises
        ends the run.
    interrupted: asked between batches; where it says so, what is computed is finished, and the run ends.

    Outcomes come batch by batch: within a window of some batches the longer recordings first; ONE_BY_ONE in the order
    of the rows. A row that cannot be used is written to `failures.jsonl` in the output folder, with its reason, and the
    run goes on; at the end that file is in the order of the rows. Rows that failed in a run before this one are tried
    again, and those that this one does not reach stay in the file.

    Closed before its end, it finishes the results that writers have in hand and drops the others.

    Raises:
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    limit = _Limit()
    reading = ReadAhead(
        range(len(rows)),
        lambda number: (
            _settled(number, rows[number], model, settled) or _read(number, rows[number], model, max_duration)
        ),
        threads=reader_threads(model.device.type),
        most_items=MOST_WAITING,
        most_frames=max(WINDOW * budget, LEAST_AHEAD),
        stopped=interrupted,
    )
    unfinished: deque[tuple[int, Future[Outcome[Result]]]] = deque()
    with _Ledger(output, rows) as ledger, _writers(writers) as pool, reading:

        def finished(*, wait: bool) -> Iterator[Outcome[Result]]:
            while unfinished and (wait or unfinished[0][1].done()):
                number, future = unfinished.popleft()
                outcome = future.result()
                ledger.note(number, outcome.row, outcome.reason)
                yield outcome

        for batch in batches(reading, budget):
            if interrupted():
                break
            yield from finished(wait=False)
            for read in batch:
                if (kept := read.kept()) is not None:
                    ledger.note(read.number, read.row, None)
                    yield kept
            if all(read.settled for read in batch):
                continue
            batch = [_read_again(read, model, max_duration) if read.settled else read for read in batch]
            results = _process(process, batch, limit)
            # The results of two batches at most: of the one that is being written, and of the one that waits for it.
            yield from finished(wait=any(not isinstance(result, ValueError) for result in results))
            for read, result in zip(batch, results, strict=True):
                if read.settled is None:
                    if isinstance(result, ValueError):
                        ledger.note(read.number, read.row, str(result))
                    unfinished.append((read.number, pool.submit(_finish, finish, read, result)))
            del batch, results, read, result
        yield from finished(wait=True)


def read_row(row: Row, *, sample_rate: int, max_duration: float = float("inf")) -> Recording:
    """The recording that a row means, or that part of it.

    Raises:
        AudioError: see `read_recording`; or the file was changed while it was read.
    """
    part = {"sample_rate": sample_rate, "max_duration": max_duration, "offset": row.offset, "duration": row.duration}
    before = source_state(row)
    recording = replace(_read_part(row, part), source=before or "")
    if row.content is None and before is not None and source_state(row) != before:
        raise AudioError("was changed while it was read: wait for the end of what writes it")
    return recording


def source_state(row: Row) -> str | None:
    """What tells this state of a row's recording from others; None where it cannot be had.

    Size and time of the last change, to the nanosecond, of a file: a hash of its content would read the whole corpus,
    which takes as long as decoding it. So a copy with another date is another recording, and is taken anew. A row with
    content of its own has its hash. And the part of it that is meant.
    """
    part = f", from {row.offset!r} for {row.duration!r}" if row.offset or row.duration is not None else ""
    if row.content is not None:
        return f"sha256 {hashlib.sha256(row.content()).hexdigest()}{part}"
    try:
        found = row.path.stat()
    except OSError:
        return None
    return f"{found.st_size} bytes, changed {found.st_mtime_ns}{part}"


def _read_part(row: Row, part: dict[str, Any]) -> Recording:
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
    """A row and its recording, or why there is none. frames: what the model makes of it.

    settled: what a run before this one made of it; the recording is None where that was not needed.
    """

    number: int
    row: Row
    recording: Recording | ValueError | None
    frames: int
    settled: Settled[Any] | None = None

    def kept(self) -> Outcome[Any] | None:
        """The outcome of a row that is settled."""
        if (found := self.settled) is None:
            return None
        return Outcome(self.row, found.result, None, found.samples / found.sample_rate, found.flags, kept=True)


def _settled(number: int, row: Row, model: Model, settled: Callable[[Row], Settled[Any] | None]) -> _Read | None:
    if (found := settled(row)) is None:
        return None
    return _Read(number, row, None, model.count_frames(found.samples), found)


def _read_again(read: _Read, model: Model, max_duration: float) -> _Read:
    """With the recording, for the sake of its neighbours in the batch."""
    return replace(_read(read.number, read.row, model, max_duration), settled=read.settled)


@dataclass
class _Limit:
    """Frames that fit into memory at once, over all recordings of a batch, as far as that was found out."""

    frames: float = float("inf")


def _read(number: int, row: Row, model: Model, max_duration: float) -> _Read:
    try:
        recording = read_row(row, sample_rate=model.sample_rate, max_duration=max_duration)
        model.check_waveform(recording.waveform)
    except Exception as error:
        return _Read(number, row, _failure(error), frames=0)
    return _Read(number, row, recording, model.count_frames(len(recording.waveform)))


def _process(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[_Read], limit: _Limit
) -> list[Found | ValueError]:
    """What the model finds in each of a batch; a batch that fails is taken apart until it is known what failed.

    Memory that was short changes the parts in which a batch is taken, and never which batches there are.
    """
    readable = [read for read in batch if isinstance(read.recording, Recording)]
    found = iter(_process_readable(process, readable, limit))
    return [next(found) if isinstance(read.recording, Recording) else _no_recording(read) for read in batch]


def _no_recording(read: _Read) -> ValueError:
    assert isinstance(read.recording, ValueError)
    return read.recording


def _process_readable(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[_Read], limit: _Limit
) -> list[Found | ValueError]:
    frames = sum(read.frames for read in batch)
    if len(batch) == 0 or (len(batch) > 1 and frames > limit.frames):
        return [found for half in _halves(batch) for found in _process_readable(process, half, limit)]
    try:
        return list(process([(read.row, read.recording) for read in batch if isinstance(read.recording, Recording)]))
    except Exception as error:
        failure, memory_is_short = _failure(error), _out_of_memory(error)
    # From here on nobody holds the error, nor the tensors that its frames hold.
    if memory_is_short:
        torch.cuda.empty_cache()  # blocks of other sizes; does nothing where no GPU is in use
    if len(batch) == 1:
        return [failure]
    if memory_is_short:
        limit.frames = max(1, frames // 2)
        logger.warning("%d frames do not fit into memory: at most %d at once from here on", frames, limit.frames)
    return [found for half in _halves(batch) for found in _process_readable(process, half, limit)]


def _halves(batch: Sequence[_Read]) -> list[Sequence[_Read]]:
    """Two of them; none of nothing."""
    half = len(batch) // 2
    return [part for part in (batch[:half], batch[half:]) if part]


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
    """`failures.jsonl`: each failure as soon as it is known; when it is closed, in the order of the rows.

    It begins with what a run before this one said of these rows. Where this run reaches a row, what it says counts:
    until the end a line of each may stand there, and the later one is right.

    Raises:
        RunError: the output cannot be written.
    """

    def __init__(self, output: Path, rows: Sequence[Row]):
        self._path = output / LEDGER
        self._noted: set[int] = set()  # numbers of the rows that failed in this run
        try:
            output.mkdir(parents=True, exist_ok=True)
            before = self._read()
            numbers = {row.id: number for number, row in enumerate(rows)} if before else {}
            self._lines = {numbers[row_id]: line for row_id, line in before.items() if row_id in numbers}
            self._rewrite()
        except OSError as error:
            raise RunError(f"cannot write to {output}: {error.strerror or error}") from error

    def __enter__(self) -> "_Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        # Where the disk is full, the lines stay as they came: none is missing.
        with suppress(OSError):
            self._rewrite()

    def note(self, number: int, row: Row, reason: str | None) -> None:
        """What became of a row, whose number it is: the first reason counts; None: it is no failure."""
        if reason is None:
            self._lines.pop(number, None)
            return
        if number in self._noted:
            return
        line = json.dumps({"id": row.id, "path": os.fspath(row.path), "reason": reason}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        self._noted.add(number)
        self._lines[number] = line

    def _read(self) -> dict[str, str]:
        """The lines that are there, by the ids of their rows; one that a kill cut short is none."""
        lines = {}
        with suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                with suppress(ValueError, KeyError, TypeError):
                    lines[json.loads(line)["id"]] = line
        return lines

    def _rewrite(self) -> None:
        content = "".join(line for _, line in sorted(self._lines.items())).encode()
        if not content:
            self._path.unlink(missing_ok=True)
        elif not self._path.is_file() or self._path.read_bytes() != content:
            write_whole(self._path, content)
