"""A subprocess that decodes one recording after the other, and may be killed at it.

The process that started it is at the other end of its standard input and output; see `decoder_subprocess`. A
request is a line of JSON, the arguments of `read_samples`, or of `read_duration` under its name. A reply is messages:
the blocks of samples as they come, then what was found, or why there is nothing. No message is a pickle: what comes out
of a process that reads crafted files is data, not code.
"""

import json
import os
import resource
import select
import signal
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from w2v_attn.audio.decoders import AudioError
from w2v_attn.audio.samples import read_duration, read_samples

# A message: what it is, the bytes that follow.
HEAD = struct.Struct("<cQ")
READY, BLOCK, FOUND, REFUSED, NO_MEMORY = b"+", b"b", b"f", b"r", b"m"
# Seconds after which a decoder that hangs ends itself, beyond those after which it should have been killed.
GRACE = 5


def main() -> None:
    """Arguments: seconds that a block may take, bytes of memory beyond what the libraries take."""
    timeout, memory = float(sys.argv[1]), int(sys.argv[2])
    with suppress(ImportError):
        import av
        import av.error  # noqa: F401 - now, for what comes later counts against the limit
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no reply
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_memory(memory)
    _send(replies, READY)
    for line in sys.stdin.buffer:
        try:
            _decode(json.loads(line), replies, timeout)
        except AudioError as refusal:
            _send(replies, REFUSED, str(refusal).encode(errors="replace"))
        except MemoryError:
            _send(replies, NO_MEMORY)
        _alarm(0)


def _decode(request: dict[str, Any], replies: int, timeout: float) -> None:
    if (header := request.get("read_duration")) is not None:
        _alarm(timeout + GRACE)
        _send(replies, FOUND, json.dumps(read_duration(**header)).encode())
        return
    blocks = read_samples(**request)
    while True:
        _alarm(timeout + GRACE)
        try:
            block = next(blocks)
        except StopIteration as end:
            _alarm(0)
            _send(replies, FOUND, json.dumps(vars(end.value)).encode())
            return
        _alarm(0)  # who reads the block may take its time
        _send(replies, BLOCK, np.ascontiguousarray(block, np.float32).view(np.uint8).data)


def _send(replies: int, kind: bytes, content: bytes | memoryview = b"") -> None:
    os.write(replies, HEAD.pack(kind, len(content)))
    while len(content) > 0:
        content = content[os.write(replies, content) :]


def _alarm(seconds: float) -> None:
    """The kernel ends this process after so many seconds, whatever it does then; 0: it does not."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _end_with_parent() -> None:
    """Ends this process with the one that started it, however that ends, and also while a decoder is at work."""
    hung_up = select.poll()
    hung_up.register(0, 0)  # of a pipe without a writer it is told unasked
    hung_up.poll()
    os._exit(0)


def _limit_memory(more: int) -> None:
    """So many bytes more than the process has now; beyond them, who asks for memory gets none."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is told, and leaves no file behind
    with suppress(FileNotFoundError):  # not Linux: there is no such limit that holds
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
