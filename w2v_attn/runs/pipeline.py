"""Three things at once: threads decode the next recordings, the caller's thread runs the model on a batch, and threads
write what came out of the batch before.

A run that goes on where another one ended makes the same batches of the same list: features agree to the bit only
where the blocking of the products does, and that depends on a batch as a whole. So a batch whose results are all there
is passed over, and one of which something is missing is computed whole, and only what is missing is written.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.runs.failure_log import FailureLog
from w2v_attn.runs.outcomes import CachedResult, Outcome, is_out_of_memory, row_failure
from w2v_attn.runs.prefetch import MAX_WAITING, MIN_FRAMES_AHEAD, WINDOW, ReadAhead, batches, reader_threads
from w2v_attn.runs.row_reader import Model, ReadRow, RowReader

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Result = TypeVar("Result")

Batch = Sequence[tuple[Row, Recording]]

# The budget of a model that takes one recording at a time: none fits in, so each is a batch of its own.
ONE_BY_ONE = 0


def process_rows(
    rows: Sequence[Row],
    model: Model,
    process: Callable[[Batch], Sequence[Found | ValueError]],
    finish: Callable[[Row, Recording, Found], Result],
    *,
    max_duration: float,
    budget: int,
    writers: int = 1,
    find_cached: Callable[[Row], CachedResult[Result] | None] = lambda row: None,
    interrupted: Callable[[], bool] = lambda: False,
    audio_decoder: AudioDecoderOptions = INLINE,
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
    find_cached: what a run before this one left of a row, if that counts; asked in the threads that read. What it raises
        ends the run.
    interrupted: asked between batches; where it says so, what is computed is finished, and the run ends.
    audio_decoder: where and within which limits recordings are decoded.

    Outcomes come batch by batch: within a window of some batches the longer recordings first; ONE_BY_ONE in the order
    of the rows. Closed before its end, it finishes the results that writers have in hand and drops the others.

    Raises:
        RunError: what `finish` writes cannot be written (disk full, gone, read-only).
    """
    limit, decoder = MemoryLimit(), audio_decoder.start()
    reader = RowReader(model, max_duration, find_cached, decoder.read_recording)
    reading = ReadAhead(
        rows,
        reader.read,
        threads=reader_threads(model.device.type),
        max_items=MAX_WAITING,
        max_frames=max(WINDOW * budget, MIN_FRAMES_AHEAD),
        stopped=interrupted,
    )
    unfinished: deque[Future[Outcome[Result]]] = deque()

    def finished(*, wait: bool) -> Iterator[Outcome[Result]]:
        while unfinished and (wait or unfinished[0].done()):
            yield unfinished.popleft().result()

    # The decoder is closed first: so threads that wait for one that hangs wait no more.
    with _writers(writers) as pool, reading, closing(decoder):
        for batch in batches(reading, budget):
            if interrupted():
                break
            yield from finished(wait=False)
            yield from (outcome for read in batch if (outcome := read.cached_outcome()) is not None)
            if all(read.cached for read in batch):
                continue
            batch = [reader.complete(read) for read in batch]
            results = process_batch(process, batch, limit)
            # The results of two batches at most: of the one that is being written, and of the one that waits for it.
            yield from finished(wait=any(not isinstance(result, ValueError) for result in results))
            for read, result in zip(batch, results, strict=True):
                if read.cached is None:
                    unfinished.append(pool.submit(_finish, finish, read, result))
            del batch, results, read, result
        yield from finished(wait=True)


def _finish(
    finish: Callable[[Row, Recording, Found], Result], read: ReadRow, found: Found | ValueError
) -> Outcome[Result]:
    if isinstance(found, ValueError):
        return Outcome(read.row, None, str(found))
    assert isinstance(read.recording, Recording)
    try:
        result = finish(read.row, read.recording, found)
    except Exception as error:
        return Outcome(read.row, None, str(row_failure(error)))
    return Outcome(read.row, result, None, read.recording.duration, read.recording.flags)


@contextmanager
def _writers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that finish results; when it is left, what none of them has begun is dropped."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class MemoryLimit:
    """Frames that fit into memory at once, over all recordings of a batch, as far as that was found out."""

    frames: float = float("inf")


def process_batch(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[ReadRow], limit: MemoryLimit
) -> list[Found | ValueError]:
    """What the model finds in each of a batch; a batch that fails is taken apart until it is known what failed.

    Memory that was short changes the parts in which a batch is taken, and never which batches there are.
    """
    readable = [read for read in batch if isinstance(read.recording, Recording)]
    found = iter(_process_readable(process, readable, limit))
    return [next(found) if isinstance(read.recording, Recording) else _no_recording(read) for read in batch]


def _no_recording(read: ReadRow) -> ValueError:
    assert isinstance(read.recording, ValueError)
    return read.recording


def _process_readable(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[ReadRow], limit: MemoryLimit
) -> list[Found | ValueError]:
    frames = sum(read.frames for read in batch)
    if len(batch) == 0 or (len(batch) > 1 and frames > limit.frames):
        return [found for half in _halves(batch) for found in _process_readable(process, half, limit)]
    try:
        return list(process([(read.row, read.recording) for read in batch if isinstance(read.recording, Recording)]))
    except Exception as error:
        reason, memory_is_short = row_failure(error), is_out_of_memory(error)
    # From here on nobody holds the error, nor the tensors that its frames hold.
    if memory_is_short:
        torch.cuda.empty_cache()  # blocks of other sizes; does nothing where no GPU is in use
    if len(batch) == 1:
        return [reason]
    if memory_is_short:
        limit.frames = max(1, frames // 2)
        logger.warning("%d frames do not fit into memory: at most %d at once from here on", frames, limit.frames)
    return [found for half in _halves(batch) for found in _process_readable(process, half, limit)]


def _halves(batch: Sequence[ReadRow]) -> list[Sequence[ReadRow]]:
    """Two of them; none of nothing."""
    half = len(batch) // 2
    return [part for part in (batch[:half], batch[half:]) if part]


def run_corpus(
    rows: Sequence[Row],
    output: Path,
    model: Model,
    process: Callable[[Batch], Sequence[Found | ValueError]],
    finish: Callable[[Row, Recording, Found], Result],
    **options: Any,
) -> Generator[Outcome[Result], None, None]:
    """Like `process_rows`; and what cannot be used is written down.

    A row that cannot be used is written to `failures.jsonl` in the output folder, with its reason, and the run goes on;
    at the end that file is in the order of the rows. Rows that failed in a run before this one are tried again, and
    those that this one does not reach stay in the file.

    Raises:
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    with (
        FailureLog(output, rows) as failures,
        closing(process_rows(rows, model, process, finish, **options)) as outcomes,
    ):
        for outcome in outcomes:
            failures.note(outcome)
            yield outcome
