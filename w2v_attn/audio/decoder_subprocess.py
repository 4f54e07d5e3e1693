"""Decoding in subprocesses: a file that makes a decoder hang, crash or run out of memory costs that recording only.

Each reading thread has its own subprocess, started on first use, which decodes one recording after the other. It is a
plain program that talks over pipes: it imports neither torch nor the running program, and inherits no locks of other
threads.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import w2v_attn
from w2v_attn.audio.audio_source import AudioError
from w2v_attn.audio.read_audio import Recording, recording_of
from w2v_attn.audio.samples import AudioInfo
from w2v_attn.audio.worker import BLOCK, FOUND, HEAD, NO_MEMORY, READY, REFUSED
from w2v_attn.run_error import FAILURE_KINDS, RunError

Reply = TypeVar("Reply")

# Seconds that the start of a process may take: on a busy cluster Python is read over the network.
START_TIMEOUT = 120.0
# Seconds to wait for the end of a killed process: one that waits for a dead disk never ends.
KILL_TIMEOUT = 1.0
# Bytes that a pipe buffers: 16 seconds of samples, and the most that Linux allows every user.
PIPE_BYTES = 1 << 20


# Imports this installation of the package, and nothing from the working directory (`-P`), which may hold audio only.
PACKAGE_ROOT = str(Path(w2v_attn.__file__).resolve().parent.parent)
BOOTSTRAP = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import w2v_attn
del sys.path[0]
from w2v_attn.audio.worker import main
main()
"""


class SubprocessDecoder:
    """A decoder that runs `read_recording` in subprocesses.

    Args:
        timeout: Seconds that a subprocess may take until its next block of samples.
        memory_gb: Memory in GB that a subprocess may allocate beyond what its libraries need.
        limits: Limits for every recording; see `read_audio.read_recording`.
    """

    def __init__(self, *, timeout: float, memory_gb: float, **limits: Any):
        self._timeout, self._memory_gb, self._limits = timeout, memory_gb, limits
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._closed = False

    def read_recording(self, path: str | os.PathLike[str], *, sample_rate: int, **part: Any) -> Recording:
        """Decode a recording, from any thread; see `read_audio.read_recording`.

        Raises:
            AudioError: the recording cannot be used, its decoder hangs, crashes or needs too much memory, or the
                decoder was closed meanwhile.
            RunError: the subprocesses do not start.
        """
        request = {"path": os.path.abspath(path), "sample_rate": sample_rate, **self._limits, **part}

        def recording(blocks: list[np.ndarray], found: Any) -> Recording:
            return recording_of(blocks, sample_rate, AudioInfo(**{**found, "flags": tuple(found["flags"])}))

        try:
            return self._ask(request, recording)
        except _LostError:
            # Retries once: somebody may have killed the process, or the disk was busy. A failure at once would move the
            # rows near it into other batches, which changes the last bits of their features.
            return self._ask(request, recording)

    def read_duration(self, path: str | os.PathLike[str]) -> float | None:
        """Return the duration in seconds that a header states; see `samples.read_duration`.

        Raises:
            AudioError, RunError: see `read_recording`.
        """
        return self._ask({"read_duration": {"path": os.path.abspath(path)}}, lambda _, found: found)

    def _ask(self, request: dict[str, Any], make: Callable[[list[np.ndarray], Any], Reply]) -> Reply:
        while not (process := self._take()).send(request):
            self._drop(process)  # it ended while it was idle
        try:
            reply = self._reply(process, make)
        except BaseException:
            self._drop(process)
            raise
        self._give_back(process)
        if isinstance(reply, AudioError):
            raise reply
        return reply

    def close(self) -> None:
        """End all processes, also busy ones: the threads that wait for them get an AudioError."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in [*idle, *self._busy]:
                process.kill()
        for process in idle:  # the threads that wait for the others end them
            process.end()

    def _reply(self, process: "_Process", make: Callable[[list[np.ndarray], Any], Reply]) -> Reply | AudioError:
        """Return the reply of a process. Raises _LostError if the process died or hangs."""
        blocks: list[np.ndarray] = []
        try:
            for kind, content in process.messages(self._timeout):
                if kind == BLOCK:
                    blocks.append(np.frombuffer(content, np.float32))
                elif kind == FOUND:
                    return make(blocks, json.loads(content))
                elif kind == REFUSED:
                    return _refusal(json.loads(content))
                elif kind == NO_MEMORY:
                    return AudioError(
                        f"takes more than {self._memory_gb:g} GB of memory to decode: if it should, raise "
                        "audio_decoder.memory_gb",
                        kind="out_of_memory",
                    )
        except TimeoutError:
            raise _LostError(
                f"took longer than {self._timeout:g} seconds to decode without giving a sample: if it should, raise "
                "audio_decoder.timeout",
                kind="decoder_timeout",
            ) from None
        if self._closed:
            raise AudioError("was interrupted", kind="interrupted")
        raise _LostError(f"crashes its decoder ({process.end()})", kind="decoder_crashed")

    def _take(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise AudioError("was interrupted", kind="interrupted")
            process = self._idle.pop() if self._idle else _Process(self._timeout, self._memory_gb)
            self._busy.add(process)
        try:
            process.wait_ready()
        except BaseException as error:
            self._drop(process)
            if self._closed and isinstance(error, RunError):  # closed before it had started
                raise AudioError("was interrupted", kind="interrupted") from None
            raise
        return process

    def _give_back(self, process: "_Process") -> None:
        with self._lock:
            if not self._closed:
                self._busy.discard(process)
                self._idle.append(process)
                return
        self._drop(process)

    def _drop(self, process: "_Process") -> None:
        with self._lock:
            self._busy.discard(process)
        process.kill()
        process.end()


class _LostError(AudioError):
    """A process died or hung while it decoded a recording."""


def _refusal(content: Any) -> AudioError:
    """Return the error that a subprocess reports; its content may be wrong, because a file may control the process."""
    kind = str(content["kind"])
    return AudioError(str(content["reason"]), kind=kind if kind in FAILURE_KINDS else "other")


class _Process:
    def __init__(self, timeout: float, memory_gb: float):
        # One thread: every thread of a BLAS library reserves address space, which counts against the limit.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOTSTRAP, PACKAGE_ROOT, str(timeout), str(int(memory_gb * 1e9))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, **threads},
                start_new_session=True,  # Ctrl-C goes to the run, which ends its processes
            )
        except OSError as error:  # no more processes, or no memory for one
            raise _cannot_start(error.strerror or str(error)) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        _widen(self._replies.fileno())
        self._come = select.poll()
        self._come.register(self._replies, select.POLLIN)
        self._ready = False

    def wait_ready(self) -> None:
        """Wait until the process has started. Raises RunError if it does not."""
        if self._ready:
            return
        with suppress(TimeoutError):
            self._ready = next(self.messages(START_TIMEOUT), None) == (READY, b"")
        if not self._ready:
            self.kill()
            raise _cannot_start(self.end())

    def send(self, request: dict[str, Any]) -> bool:
        """Send a request; return False if the process has ended."""
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
        except OSError:
            return False
        return True

    def messages(self, timeout: float) -> Iterator[tuple[bytes, bytearray]]:
        """Yield (kind, content) until the process ends. Raises TimeoutError if one takes longer than `timeout`."""
        while True:
            deadline = time.monotonic() + timeout
            head = self._read(HEAD.size, deadline)
            if head is None:
                return
            kind, length = HEAD.unpack(head)
            content = self._read(length, deadline)
            if content is None:
                return
            yield kind, content

    def _read(self, length: int, deadline: float) -> bytearray | None:
        """Return `length` bytes, or None if the process ended before."""
        content = bytearray(length)
        left = memoryview(content)
        while len(left) > 0:
            if not self._come.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            count = os.readv(self._replies.fileno(), [left])
            if count == 0:
                return None
            left = left[count:]
        return content

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """Wait briefly for the end of the process, close its pipes, and return how it ended. For its owner only."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT)
        with suppress(OSError):
            self._requests.close()
        self._replies.close()
        code = self._process.returncode
        if code is None:
            return "it cannot be ended"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _cannot_start(cause: str) -> RunError:
    return RunError(
        f"the subprocesses that decode recordings do not start ({cause}): audio_decoder=inline decodes without them"
    )


def _widen(pipe: int) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # above the user's limit: the default size is enough, only slower
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
