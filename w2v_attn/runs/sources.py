"""From a row to its recording; and what tells this state of it from others."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from w2v_attn.audio.decoders import AudioError
from w2v_attn.audio.reading import Recording, read_duration, read_recording
from w2v_attn.corpus.rows import Row


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


def row_duration(row: Row) -> float | None:
    """Seconds of the recording that a row means, as the row or a header says; None where neither does.

    Raises:
        AudioError: see `read_duration`.
    """
    if row.duration is not None:
        return row.duration
    with _file_of(row) as path:
        whole = read_duration(path)
    return None if whole is None else max(0.0, whole - row.offset)


def row_weight(row: Row) -> float:
    """About how much of a corpus a row is, without opening it: the bytes of its file; 0 where there is none.

    A part that says how long it is has the bytes of 16-bit samples at 16 kHz; rows with content of their own are alike.
    """
    if row.duration is not None:
        return 32_000 * row.duration
    if row.content is not None:
        return 1.0
    try:
        return os.stat(row.path).st_size
    except OSError:
        return 0.0


def _read_part(row: Row, part: dict[str, Any]) -> Recording:
    with _file_of(row) as path:
        return read_recording(path, **part)


@contextmanager
def _file_of(row: Row) -> Iterator[Path]:
    """The file of a row, while open; the decoders read by descriptor."""
    if row.content is None:
        yield row.path
        return
    with tempfile.NamedTemporaryFile(suffix=row.path.suffix) as file:
        file.write(row.content())
        file.flush()
        yield Path(file.name)
