"""The local engine: several processes on this machine with an encoder each, one for each GPU."""

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from w2v_attn.extraction.extractor import ExtractionJob, ExtractorDescription, InProcessExtractor, Outcomes, chunks
from w2v_attn.extraction.feature_spec import FeatureLocation
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.rank import Block, rows_of

logger = logging.getLogger(__name__)

# A chunk whose process died is retried unchanged, because somebody may have killed it; then in halves, down to the
# recording that causes it.
MAX_TRIES = 2
# Seconds between two checks for an interruption; and seconds that a process may take to exit.
POLL_SECONDS, EXIT_TIMEOUT = 0.2, 10.0
# Messages of a process besides outcomes.
READY, DONE, WRONG, STOPPED = "ready", "done", "wrong request", "stopped"


class LocalProcesses:
    """An extractor with an encoder in each of several processes, one for each device. Used as a context manager.

    A process that dies is replaced, and its chunk is retried; a recording that kills its process every time fails with
    that reason. Which process has which rows does not change the features.

    Args:
        job: What is extracted, and with which model.
        devices: torch's names, one for each process.
        threads: Threads of each process; None: torch's default.

    Raises:
        ValueError: an invalid job.
        RunError: a process does not start.
    """

    def __init__(self, job: ExtractionJob, devices: Sequence[str], *, threads: int | None = None):
        # Not an Event: it has a lock, which a process that is killed while holding it would never release.
        self._stop = _context().RawValue(ctypes.c_bool, False)
        self._processes = [_Process(job, device, threads, self._stop) for device in devices]
        try:
            self.description, *_ = [process.wait_ready() for process in self._processes]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "LocalProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes: idle ones at once, the others before their next recording."""
        self._stop.value = True
        for process in self._processes:
            process.stop()

    def extract(
        self, blocks: Sequence[Block], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """See `Extractor`. If closed early, it ends the processes, so that nothing is written after the run."""
        try:
            yield from self._extract(blocks, batch_frames, interrupted)
        except BaseException:
            self.close()
            raise

    def _extract(self, blocks: Sequence[Block], batch_frames: int, interrupted: Callable[[], bool]) -> Outcomes:
        queue = _Queue(chunks(blocks, len(self._processes)))
        while True:
            if interrupted():
                self._stop.value = True
            for process in self._processes:
                if process.chunk is None and not self._stop.value and (chunk := queue.next()) is not None:
                    process.send(chunk, batch_frames)
            busy = {process.connection: process for process in self._processes if process.chunk is not None}
            if not busy:
                return
            for ready in wait(list(busy), timeout=POLL_SECONDS):
                yield from self._receive(busy[ready], queue)

    def _receive(self, process: "_Process", queue: "_Queue") -> Iterator[Outcome[FeatureLocation]]:
        """Handle a message of a process."""
        assert process.chunk is not None
        try:
            kind, what = process.connection.recv()
        except (EOFError, OSError):  # an OSError if it ended within a message
            chunk, cause = process.chunk, process.reap()
            yield from queue.retry(chunk, cause)
            if not self._stop.value:
                process.wait_ready()
            return
        if kind == WRONG:
            raise ValueError(what)
        if kind == STOPPED:
            raise RunError(what)
        if kind == DONE:
            process.chunk = None
        elif process.chunk.settle(what):
            yield what


class _Chunk:
    """Blocks that a process works on. left: rows without an outcome, by id. tries: how often it was tried."""

    def __init__(self, blocks: Sequence[Block], *, tries: int = 0):
        self.blocks, self.tries = blocks, tries
        self.left = {row.id: row for row in rows_of(blocks)}

    def settle(self, outcome: Outcome[FeatureLocation]) -> bool:
        """Return whether an outcome is new; a chunk that is retried repeats known outcomes."""
        return self.left.pop(outcome.row.id, None) is not None


class _Queue:
    """Chunks that wait for a process; those to be retried come first."""

    def __init__(self, chunks: Iterator[Sequence[Block]]):
        self._new, self._retries = chunks, deque[_Chunk]()

    def next(self) -> _Chunk | None:
        """Return the next chunk, or None if there is none now."""
        if self._retries:
            return self._retries.popleft()
        blocks = next(self._new, None)
        return None if blocks is None else _Chunk(blocks)

    def retry(self, chunk: _Chunk, cause: str) -> Iterator[Outcome[FeatureLocation]]:
        """Queue a chunk whose process died; yield a failure for a recording that was alone in it."""
        tries = chunk.tries + 1
        if tries < MAX_TRIES:
            # Block by block, each as a whole: written results are found, and the batches stay the same.
            for retried in (_Chunk([block], tries=tries) for block in chunk.blocks):
                retried.left = {row_id: row for row_id, row in retried.left.items() if row_id in chunk.left}
                if retried.left:
                    self._retries.append(retried)
            return
        for block in chunk.blocks:  # there is only one
            left = [row for row in block.rows if row.id in chunk.left]
            half = len(left) // 2
            if half:
                for rows in (left[:half], left[half:]):
                    self._retries.append(_Chunk([Block(block.number, rows)], tries=tries))
            elif left:
                yield Outcome(left[0], None, f"the process that worked on it died ({cause})")


class _Process:
    """A worker process, seen from the parent. chunk: what it works on."""

    def __init__(self, job: ExtractionJob, device: str, threads: int | None, stop: Any):
        self._start = (job, device, threads, stop)
        self.chunk: _Chunk | None = None
        self._launch()

    def _launch(self) -> None:
        self.connection, theirs = _context().Pipe()
        self._child = _context().Process(target=_serve, args=(theirs, *self._start), name="extractor")
        self._child.start()
        theirs.close()  # so that reading ends when the process ends
        self._launched = True

    def wait_ready(self) -> ExtractorDescription:
        """Wait until the process has loaded its encoder; restart it if it has died."""
        if not self._launched:
            self._launch()
        try:
            kind, what = self.connection.recv()
        except (EOFError, OSError):
            raise RunError(f"a process for {self._start[1]} cannot start ({self.reap()})") from None
        if kind == READY:
            return what
        raise ValueError(what) if kind == WRONG else RunError(what)

    def send(self, chunk: _Chunk, batch_frames: int) -> None:
        """Send a chunk to the process."""
        self.chunk = chunk
        with suppress(ConnectionError):  # it has died, which shows when its messages are read
            self.connection.send((chunk.blocks, batch_frames))

    def reap(self) -> str:
        """Collect a process that died, and return how it died."""
        self.connection.close()
        self._child.join(EXIT_TIMEOUT)
        code = self._child.exitcode
        self._child.kill()
        self.chunk, self._launched = None, False
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """Let the process exit; kill it if it does not."""
        self.connection.close()
        self._child.join(EXIT_TIMEOUT)
        if self._child.is_alive():
            self._child.kill()
            self._child.join()


def _serve(connection: Connection, job: ExtractionJob, device: str, threads: int | None, stop: Any) -> None:
    """Run the worker process: load the encoder, describe it, then extract chunks until the connection is closed."""
    # Ctrl-C reaches the whole process group: the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with suppress(EOFError, ConnectionError):
        try:
            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            worker = InProcessExtractor.load(job, device=device)
            connection.send((READY, worker.description))
            while True:
                blocks, batch_frames = connection.recv()
                for outcome in worker.extract(blocks, batch_frames=batch_frames, interrupted=lambda: stop.value):
                    connection.send((None, outcome))
                connection.send((DONE, None))
        except (EOFError, ConnectionError):
            raise
        except ValueError as error:
            connection.send((WRONG, str(error)))
        except RunError as error:
            connection.send((STOPPED, str(error)))
        except Exception:
            connection.send((STOPPED, f"the process for {device} failed:\n{traceback.format_exc()}"))
    os._exit(0)  # threads that hang on a file system must not keep the process alive


def _end_with_parent() -> None:
    """Exit when the parent exits: nobody may write to a folder that the next run may already use."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _context() -> Any:
    """Return the forkserver context: it forks from a process that has only imported the package.

    CUDA does not survive a fork of a process that has used it, nor do threads; and a replacement starts at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([InProcessExtractor.__module__])
    return context
