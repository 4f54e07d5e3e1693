"""The audio decoder subprocess, which can be killed while it decodes; see `SubprocessDecoder`.

Standard input and output connect it with its parent. A request is a line of JSON: the arguments of `read_samples`, or
of `read_duration` under its name. A reply is a sequence of messages: blocks of samples, then the information about the
file, or the error. No message is a pickle, because a malicious file may control this process: its parent reads its
output as data, never as code.
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

from w2v_attn.audio.audio_source import AudioError
from w2v_attn.audio.samples import read_duration, read_samples

# The head of a message: its kind and the number of bytes that follow.
HEAD = struct.Struct("<cQ")
READY, BLOCK, FOUND, REFUSED, NO_MEMORY = b"+", b"b", b"f", b"r", b"m"
# Seconds beyond the timeout after which a decoder that hangs ends itself, in case its parent did not kill it.
GRACE = 5


def main() -> None:
    """Decode recordings until standard input is closed.

    Command-line arguments: seconds that a block may take, and bytes of memory beyond those of the libraries.
    """
    timeout, memory = float(sys.argv[1]), int(sys.argv[2])
    with suppress(ImportError):
        import av
        import av.error  # noqa: F401 - imported now, because memory allocated later counts against the limit
    replies = os.dup(1)
    os.dup2(2, 1)  # keep the output of libraries out of the replies
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_memory(memory)
    _send(replies, READY)
    for line in sys.stdin.buffer:
        try:
            _decode(json.loads(line), replies, timeout)
        except AudioError as refusal:
            _send(replies, REFUSED, json.dumps({"reason": str(refusal), "kind": refusal.kind}).encode())
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
        _alarm(0)  # the parent may be slow to read the block
        _send(replies, BLOCK, np.ascontiguousarray(block, np.float32).view(np.uint8).data)


def _send(replies: int, kind: bytes, content: bytes | memoryview = b"") -> None:
    os.write(replies, HEAD.pack(kind, len(content)))
    while len(content) > 0:
        content = content[os.write(replies, content) :]


def _alarm(seconds: float) -> None:
    """Have the kernel end this process after so many seconds, even if it hangs; 0 cancels that."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _end_with_parent() -> None:
    """End this process when its parent ends, for whatever reason, even while it is decoding."""
    hung_up = select.poll()
    hung_up.register(0, 0)  # POLLHUP, for a pipe without a writer, is always reported
    hung_up.poll()
    os._exit(0)


def _limit_memory(more: int) -> None:
    """Limit memory to so many bytes more than the process has now; allocations beyond that fail."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported and must not leave a core file
    with suppress(FileNotFoundError):  # not Linux: no such limit is enforced
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
