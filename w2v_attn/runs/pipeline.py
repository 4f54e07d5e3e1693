"""The pipeline of a run: threads decode ahead, the calling thread runs the model, and threads write results.

A resumed run makes the same batches of the same list, because features are bit-identical only if the batch as a whole
is: the blocking of matrix products depends on it. So a batch whose results are all cached is skipped, and a batch with
a missing result is computed as a whole, of which only the missing results are written.
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
from w2v_attn.runs.outcomes import CachedResult, Outcome, failed_outcome, is_out_of_memory, row_failure
from w2v_attn.runs.prefetch import MAX_WAITING, MIN_FRAMES_AHEAD, WINDOW, ReadAhead, batches, reader_threads
from w2v_attn.runs.row_reader import Model, ReadRow, RowReader

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Result = TypeVar("Result")

Batch = Sequence[tuple[Row, Recording]]

# The budget of a model that takes one recording at a time: nothing fits, so each recording is a batch of its own.
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
    flags_of: Callable[[Row, Recording], Sequence[str]] = lambda row, recording: (),
    interrupted: Callable[[], bool] = lambda: False,
    audio_decoder: AudioDecoderOptions = INLINE,
) -> Generator[Outcome[Result], None, None]:
    """Read, process and finish the recording of every row; yield the outcome of each when it is finished.

    Outcomes arrive batch by batch, within a window of some batches the longer recordings first; with ONE_BY_ONE in the
    order of the rows. If closed early, it finishes the results that writers have started and drops the others.

    Args:
        rows: The rows.
        model: The model that recordings are prepared for.
        process: Batch -> what the model finds in each recording, called in the calling thread; a ValueError in place of
            a recording that cannot be used, its text is the reason. If it raises one, or runs out of memory, the batch
            is retried in halves; after running out of memory, later batches are split from the start.
        finish: Writes what was found, in a thread beside the model, and returns the result of the outcome. Raises
            ValueError if the recording cannot be used. It should not compute: on a CPU a matrix product in a second
            thread slows down all of them, because OpenMP then has more threads than cores.
        max_duration: Seconds; longer recordings are not used.
        budget: Frames per batch, or `ONE_BY_ONE`.
        writers: Threads that finish results; with one, they are finished in the order of the outcomes.
        find_cached: Returns the valid result of an earlier run, called in the threads that read. What it raises ends
            the run.
        flags_of: Returns further warnings about a recording, such as about what is asked of it.
        interrupted: Asked between batches; when it returns True, computed results are finished, and the run ends.
        audio_decoder: Where and within which limits recordings are decoded.

    Raises:
        RunError: results cannot be written (disk full, gone, read-only).
    """
    limit, decoder = MemoryLimit(), audio_decoder.start()
    reader = RowReader(model, max_duration, find_cached, decoder.read_recording, flags_of)
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

    # The decoder is closed first, which frees threads that wait for a hanging one.
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
            # Holds the results of two batches at most: one is being written, and one waits for that.
            yield from finished(wait=any(not isinstance(result, ValueError) for result in results))
            read = result = None
            for read, result in zip(batch, results, strict=True):
                if read.cached is None:
                    unfinished.append(pool.submit(_finish, finish, read, result))
            del batch, results, read, result
        yield from finished(wait=True)


def _finish(
    finish: Callable[[Row, Recording, Found], Result], read: ReadRow, found: Found | ValueError
) -> Outcome[Result]:
    if isinstance(found, ValueError):
        return failed_outcome(read.row, found)
    assert isinstance(read.recording, Recording)
    try:
        result = finish(read.row, read.recording, found)
    except Exception as error:
        return failed_outcome(read.row, row_failure(error))
    recording = read.recording
    return Outcome(read.row, result, None, recording.duration, recording.flags, recording.conversions)


@contextmanager
def _writers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads that finish results; on exit, results that none of them has started are dropped."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class MemoryLimit:
    """The most frames per batch that fit into memory, as far as is known; shared by all batches of a run."""

    frames: float = float("inf")


def process_batch(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[ReadRow], limit: MemoryLimit
) -> list[Found | ValueError]:
    """Return what the model finds in each row of a batch; a batch that fails is split until the failing row is known.

    Running out of memory changes how a batch is split, and never which rows share a batch.
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
    # From here on nothing refers to the error, nor to the tensors in its stack frames.
    if memory_is_short:
        torch.cuda.empty_cache()  # cached blocks have other sizes; no effect without a GPU
    if len(batch) == 1:
        return [reason]
    if memory_is_short:
        limit.frames = max(1, frames // 2)
        logger.warning(
            "%d frames do not fit into memory: batches are split to %d frames from here on", frames, limit.frames
        )
    return [found for half in _halves(batch) for found in _process_readable(process, half, limit)]


def _halves(batch: Sequence[ReadRow]) -> list[Sequence[ReadRow]]:
    """Return the two halves of a batch, without empty ones."""
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
    """Run `process_rows`, and record failures in `failures.jsonl` in the output folder.

    A row that cannot be used is recorded with its reason, and the run continues; at the end the file is in the order of
    the rows. Rows that failed in an earlier run are retried, and those that this run does not reach stay in the file.

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
