"""From a row to its recording; and what tells this state of it from others."""

import hashlib
import tempfile
from collections.abc import Callable
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


def _read_part(row: Row, part: dict[str, Any], decode: Callable[..., Recording]) -> Recording:
    if row.content is None:
        return decode(row.path, **part)
    # The decoders read by descriptor.
    with tempfile.NamedTemporaryFile(suffix=row.path.suffix) as file:
        file.write(row.content())
        file.flush()
        return decode(file.name, **part)
