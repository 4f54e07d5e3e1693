"""Several processes on this machine, each with an encoder: one for each GPU."""

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

# A chunk whose process died is tried again as it is, for somebody may have killed it; and then in halves, down to the
# recording that does it.
MAX_TRIES = 2
# Seconds after which whoever waits for a process asks whether it still should; and that a process has for its end.
POLL_SECONDS, EXIT_TIMEOUT = 0.2, 10.0
# What a process says beside outcomes.
READY, DONE, WRONG, STOPPED = "ready", "done", "wrong request", "stopped"


class LocalProcesses:
    """An extractor whose encoders are in processes of its own, as many as devices. Open while it is used.

    A process that dies is replaced, and what it had in hand is tried again; a recording that does it every time gets
    that as its reason. Which process has which rows changes no feature.

    devices: torch's names, one for each process. threads: of each; None: as torch decides.

    Raises:
        ValueError: what the job says is wrong. RunError: a process cannot begin.
    """

    def __init__(self, job: ExtractionJob, devices: Sequence[str], *, threads: int | None = None):
        # No Event: it has a lock, and a process that is killed with it would keep it for ever.
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
        """Ends the processes: those that have nothing in hand at once, the others before their next recording."""
        self._stop.value = True
        for process in self._processes:
            process.stop()

    def extract(
        self, blocks: Sequence[Block], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """See `Extractor`. Left before its end, it ends the processes: nobody writes on when the run is over."""
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
        """Takes what a process says."""
        assert process.chunk is not None
        try:
            kind, what = process.connection.recv()
        except (EOFError, OSError):  # an OSError, where it came to its end within what it said
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
    """Parts that a process has in hand. left: rows of which nothing was heard, by their ids. tries: so far."""

    def __init__(self, blocks: Sequence[Block], *, tries: int = 0):
        self.blocks, self.tries = blocks, tries
        self.left = {row.id: row for row in rows_of(blocks)}

    def settle(self, outcome: Outcome[FeatureLocation]) -> bool:
        """Whether it is news; a chunk that is tried again has outcomes that are known."""
        return self.left.pop(outcome.row.id, None) is not None


class _Queue:
    """Chunks that wait for a process; those that are to be tried again first."""

    def __init__(self, chunks: Iterator[Sequence[Block]]):
        self._new, self._retries = chunks, deque[_Chunk]()

    def next(self) -> _Chunk | None:
        """None: there is none now."""
        if self._retries:
            return self._retries.popleft()
        blocks = next(self._new, None)
        return None if blocks is None else _Chunk(blocks)

    def retry(self, chunk: _Chunk, cause: str) -> Iterator[Outcome[FeatureLocation]]:
        """A chunk whose process died: it waits again; a recording that was alone in it has failed."""
        tries = chunk.tries + 1
        if tries < MAX_TRIES:
            # Block by block, and whole: what is there of them is found, and the batches stay the same.
            for retried in (_Chunk([block], tries=tries) for block in chunk.blocks):
                retried.left = {row_id: row for row_id, row in retried.left.items() if row_id in chunk.left}
                if retried.left:
                    self._retries.append(retried)
            return
        for block in chunk.blocks:  # it is one
            left = [row for row in block.rows if row.id in chunk.left]
            half = len(left) // 2
            if half:
                for rows in (left[:half], left[half:]):
                    self._retries.append(_Chunk([Block(block.number, rows)], tries=tries))
            elif left:
                yield Outcome(left[0], None, f"the process that worked on it died ({cause})")


class _Process:
    """A process, as it is seen from outside. chunk: what it has in hand."""

    def __init__(self, job: ExtractionJob, device: str, threads: int | None, stop: Any):
        self._start = (job, device, threads, stop)
        self.chunk: _Chunk | None = None
        self._launch()

    def _launch(self) -> None:
        self.connection, theirs = _context().Pipe()
        self._child = _context().Process(target=_serve, args=(theirs, *self._start), name="extractor")
        self._child.start()
        theirs.close()  # so that its end is the end of what can be read
        self._launched = True

    def wait_ready(self) -> ExtractorDescription:
        """Waits until the process has its encoder; one that has died is replaced."""
        if not self._launched:
            self._launch()
        try:
            kind, what = self.connection.recv()
        except (EOFError, OSError):
            raise RunError(f"a process for {self._start[1]} cannot begin ({self.reap()})") from None
        if kind == READY:
            return what
        raise ValueError(what) if kind == WRONG else RunError(what)

    def send(self, chunk: _Chunk, batch_frames: int) -> None:
        """Begins a chunk."""
        self.chunk = chunk
        with suppress(ConnectionError):  # it is dead, which is heard when it is listened to
            self.connection.send((chunk.blocks, batch_frames))

    def reap(self) -> str:
        """Takes leave of a process that died -> of what."""
        self.connection.close()
        self._child.join(EXIT_TIMEOUT)
        code = self._child.exitcode
        self._child.kill()
        self.chunk, self._launched = None, False
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """Ends the process, in order where it lets that be."""
        self.connection.close()
        self._child.join(EXIT_TIMEOUT)
        if self._child.is_alive():
            self._child.kill()
            self._child.join()


def _serve(connection: Connection, job: ExtractionJob, device: str, threads: int | None, stop: Any) -> None:
    """The process: loads, says what it is, and then extracts chunk by chunk until nobody is there to listen."""
    # Ctrl-C reaches the whole group of processes: it is for the first one to say what is to be done.
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
    os._exit(0)  # threads that hang on a file system must not keep it


def _end_with_parent() -> None:
    """Nobody writes to a folder whose run is gone: the next one may have begun there."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _context() -> Any:
    """Processes are forked from one that has imported what they need and done nothing else: CUDA survives no fork of a
    process that has used it, nor do threads; and one that is replaced is there at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([InProcessExtractor.__module__])
    return context
