"""From a row to its recording; and what tells this state of it from others."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from w2v_attn.audio.decoders import AudioError
from w2v_attn.audio.read_audio import Recording, read_recording
from w2v_attn.corpus.rows import Row
from w2v_attn.runs.outcomes import CachedResult, Outcome, row_failure


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


def row_duration(row: Row, read: Callable[[Path], float | None]) -> float | None:
    """Seconds of the recording that a row means, as the row or a header says; None where neither does.

    read: `audio.samples.read_duration`, or who does the same elsewhere.

    Raises:
        AudioError: see `read_duration`.
    """
    if row.duration is not None:
        return row.duration
    with _file_of(row) as path:
        whole = read(path)
    return None if whole is None else max(0.0, whole - row.offset)


def row_weight(row: Row) -> float:
    """About how much of a corpus a row is, without opening it: the bytes of its recording; 0 where they are not known.

    A part that says how long it is has the bytes of 16-bit samples at 16 kHz.
    """
    if row.duration is not None:
        return 32_000 * row.duration
    return source_size(row)


def _read_part(row: Row, part: dict[str, Any], decode: Callable[..., Recording]) -> Recording:
    with _file_of(row) as path:
        return decode(path, **part)


@contextmanager
def _file_of(row: Row) -> Iterator[Path]:
    """The file of a row, while open, for the decoders read by descriptor; in memory where the system can."""
    if row.content is None:
        yield row.path
        return
    on_disk = not hasattr(os, "memfd_create")
    with tempfile.NamedTemporaryFile() if on_disk else open(os.memfd_create("recording"), "wb") as file:
        file.write(row.content())
        file.flush()
        # For other processes too: the decoder may be one.
        yield Path(file.name if on_disk else f"/proc/{os.getpid()}/fd/{file.fileno()}")


class Model(Protocol):
    """What a run must know of a model to feed it; see `encoder.waveforms.WaveformModel`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def sample_rate(self) -> int: ...

    def check_waveform(self, waveform: Tensor) -> None: ...

    def count_frames(self, samples: int) -> int: ...


@dataclass(frozen=True)
class ReadRow:
    """A row and its recording, or why there is none. frames: what the model makes of it.

    cached: what a run before this one made of it; the recording is None where that was not needed.
    """

    row: Row
    recording: Recording | ValueError | None
    frames: int
    cached: CachedResult[Any] | None = None

    def cached_outcome(self) -> Outcome[Any] | None:
        """The outcome of a row that is cached."""
        if (found := self.cached) is None:
            return None
        return Outcome(self.row, found.result, None, found.samples / found.sample_rate, found.flags, cached=True)


class RowReader:
    """Reads rows for a model, in any thread. See `pipeline.process_rows` for its arguments."""

    def __init__(
        self,
        model: Model,
        max_duration: float,
        find_cached: Callable[[Row], CachedResult[Any] | None],
        decode: Callable[..., Recording],
    ):
        self._model, self._find_cached = model, find_cached
        self._read_row = partial(read_row, sample_rate=model.sample_rate, max_duration=max_duration, decode=decode)

    def read(self, row: Row) -> ReadRow:
        """The recording, where it is not cached."""
        if (found := self._find_cached(row)) is not None:
            return ReadRow(row, None, self._model.count_frames(found.samples), found)
        return self._decode(row)

    def complete(self, read: ReadRow) -> ReadRow:
        """With the recording, for the sake of its neighbours in a batch."""
        return replace(self._decode(read.row), cached=read.cached) if read.cached else read

    def _decode(self, row: Row) -> ReadRow:
        try:
            recording = self._read_row(row)
            self._model.check_waveform(recording.waveform)
        except Exception as error:
            return ReadRow(row, row_failure(error), frames=0)
        return ReadRow(row, recording, self._model.count_frames(len(recording.waveform)))
