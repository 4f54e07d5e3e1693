"""From a row to its recording; and what tells this state of it from others."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from w2v_attn.audio.decoders import AudioError
from w2v_attn.audio.reading import Recording, read_recording
from w2v_attn.corpus.rows import Row


def read_row(
    row: Row,
    *,
    sample_rate: int,
    max_duration: float = float("inf"),
    decode: Callable[..., Recording] = read_recording,
) -> Recording:
    """The recording that a row means, or that part of it.

    decode: `read_recording`, or who does the same elsewhere.

    Raises:
        AudioError: see `read_recording`; or the file was changed while it was read.
    """
    part = {"sample_rate": sample_rate, "max_duration": max_duration, "offset": row.offset, "duration": row.duration}
    before = source_state(row)
    recording = replace(_read_part(row, part, decode), source=before or "")
    if before is not None and source_state(row) != before:
        raise AudioError("was changed while it was read: wait for the end of what writes it")
    return recording


def source_state(row: Row) -> str | None:
    """What tells this state of a row's recording from others; None where it cannot be had.

    Size and time of the last change, to the nanosecond, of a file: a hash of its content would read the whole corpus,
    which takes as long as decoding it. So a copy with another date is another recording, and is taken anew. Content
    that is no file of its own says it itself. And the part of it that is meant.
    """
    part = f", from {row.offset!r} for {row.duration!r}" if row.offset or row.duration is not None else ""
    if row.content is not None:
        state = row.content.state()
        return None if state is None else f"{state}{part}"
    try:
        found = row.path.stat()
    except OSError:
        return None
    return f"{found.st_size} bytes, changed {found.st_mtime_ns}{part}"


def source_size(row: Row) -> int:
    """Bytes of a row's recording as it is stored; 0 where that is not known."""
    if row.content is not None:
        return row.content.size
    try:
        return row.path.stat().st_size
    except OSError:
        return 0  # gone since it was listed; its outcome will say so


def _read_part(row: Row, part: dict[str, Any], decode: Callable[..., Recording]) -> Recording:
    if row.content is None:
        return decode(row.path, **part)
    with _as_file(row.content()) as name:
        return decode(name, **part)


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A name under which the decoders, which read by descriptor, find these bytes; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("recording"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/{os.getpid()}/fd/{file.fileno()}"  # for other processes too: the decoder may be one
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
