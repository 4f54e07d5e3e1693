"""From a row to its recording, or to the result that an earlier run left; and fingerprints of sources."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from w2v_attn.audio.audio_source import AudioError
from w2v_attn.audio.channels import channel_number
from w2v_attn.audio.read_audio import Recording, read_recording
from w2v_attn.corpus.remote_files import RemoteFile, fetch, is_url
from w2v_attn.corpus.rows import Row
from w2v_attn.runs.outcomes import CachedResult, Outcome, row_failure


def read_row(
    row: Row,
    *,
    sample_rate: int,
    max_duration: float = float("inf"),
    decode: Callable[..., Recording] = read_recording,
) -> Recording:
    """Return the recording of a row, or the part of it that the row names.

    Args:
        row: The row.
        sample_rate: Rate of the waveform, in Hz.
        max_duration: Seconds; a longer recording is an error.
        decode: `read_recording`, or the method of an `AudioDecoder`.

    Raises:
        AudioError: see `read_recording`; or the file was changed while it was read.
    """
    part = {"sample_rate": sample_rate, "max_duration": max_duration, "offset": row.offset, "duration": row.duration}
    if row.channel is not None:
        part["channel"] = row.channel
    before = source_state(row)
    recording = replace(_read_part(row, part, decode), source=before or "")
    if before is not None and source_state(row) != before:
        raise AudioError(
            "was changed while it was read: wait until the program that writes it has finished", kind="changed"
        )
    return recording


def select_channel(rows: Sequence[Row], channel: str | int) -> tuple[Row, ...]:
    """Return rows that are read from this channel, but for those that name one of their own.

    Raises:
        ValueError: it is none that a recording could have; see `audio.channels`.
    """
    if channel_number(channel) is None:
        return tuple(rows)
    return tuple(row if row.channel is not None else replace(row, channel=channel) for row in rows)


def source_state(row: Row) -> str | None:
    """Return a fingerprint of the source of a row; None if it cannot be read.

    For a file: its size and time of last change in nanoseconds, and the part that the row names. A hash of the content
    would read the whole corpus, which takes as long as decoding it; so a copy with another date counts as another
    recording. Content that is not a file of its own has its own fingerprint.
    """
    part = f", from {row.offset!r} for {row.duration!r}" if row.offset or row.duration is not None else ""
    part += f", channel {row.channel}" if row.channel is not None else ""
    if row.content is not None:
        state = row.content.state()
        return None if state is None else f"{state}{part}"
    try:
        found = row.path.stat()
    except OSError:
        return None
    return f"{found.st_size} bytes, changed {found.st_mtime_ns}{part}"


def is_location_of(row: Row, recorded: str) -> bool:
    """Return whether a location that an earlier run recorded is that of a row.

    Paths are compared as absolute paths without links, because people write them relative to a folder or not; so are
    names inside archives. URLs are compared as they are.

    Args:
        row: The row.
        recorded: `Row.location` then; characters that are not Unicode may be replaced by question marks.
    """
    location = row.location
    if recorded in (location, readable(location)):
        return True
    if is_url(recorded) or is_url(location):
        return False
    return readable(os.path.realpath(recorded)) == readable(os.path.realpath(location))


def readable(name: str) -> str:
    """Return a name from the file system, which may not be Unicode, as text that can be written."""
    return name.encode(errors="replace").decode()


def source_size(row: Row) -> int:
    """Return the stored size of a row's recording in bytes; 0 if it is not known."""
    if row.content is not None:
        return row.content.size
    try:
        return row.path.stat().st_size
    except OSError:
        return 0  # removed since it was listed; its outcome will state that


def row_duration(row: Row, read: Callable[[Path], float | None]) -> float | None:
    """Return the duration of a row in seconds, from the row or from a header; None if neither states it.

    Args:
        row: The row.
        read: `samples.read_duration`, or the method of an `AudioDecoder`.

    Raises:
        AudioError: see `read_duration`.
    """
    if row.duration is not None:
        return row.duration
    with _file_of(row) as path:
        whole = read(path)
    return None if whole is None else max(0.0, whole - row.offset)


def row_weight(row: Row) -> float:
    """Return an estimate of a row's size without opening it: the bytes of its recording, or 0 if they are not known.

    A part with a duration counts as 16-bit samples at 16 kHz.
    """
    if row.duration is not None:
        return 32_000 * row.duration
    return source_size(row)


def _read_part(row: Row, part: dict[str, Any], decode: Callable[..., Recording]) -> Recording:
    with _file_of(row) as path:
        return decode(path, **part)


@contextmanager
def _file_of(row: Row) -> Iterator[Path]:
    """Yield a file of the row's recording, because decoders read from descriptors; in memory where possible."""
    if row.content is None:
        yield row.path
        return
    if isinstance(row.content, RemoteFile):
        yield fetch(row.content.url)
        return
    on_disk = not hasattr(os, "memfd_create")
    with tempfile.NamedTemporaryFile() if on_disk else open(os.memfd_create("recording"), "wb") as file:
        file.write(row.content())
        file.flush()
        # A path that also works in other processes: the decoder may be one.
        yield Path(file.name if on_disk else f"/proc/{os.getpid()}/fd/{file.fileno()}")


class Model(Protocol):
    """What a run needs of a model; see `encoder.waveforms.WaveformModel`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def sample_rate(self) -> int: ...

    def check_waveform(self, waveform: Tensor) -> None: ...

    def count_frames(self, samples: int) -> int: ...


@dataclass(frozen=True)
class ReadRow:
    """A row with its recording, or with the reason why there is none.

    Attributes:
        row: The row.
        recording: The recording, an error, or None if a cached result makes it unnecessary.
        frames: Frames that the model computes for it.
        cached: The result of an earlier run.
    """

    row: Row
    recording: Recording | ValueError | None
    frames: int
    cached: CachedResult[Any] | None = None

    def cached_outcome(self) -> Outcome[Any] | None:
        """Return the outcome of a row with a cached result, else None."""
        if (found := self.cached) is None:
            return None
        seconds = found.samples / found.sample_rate
        return Outcome(self.row, found.result, None, seconds, found.flags, found.conversions, cached=True)


class RowReader:
    """A reader of rows for a model, in any thread. See `pipeline.process_rows` for its arguments."""

    def __init__(
        self,
        model: Model,
        max_duration: float,
        find_cached: Callable[[Row], CachedResult[Any] | None],
        decode: Callable[..., Recording],
        flags_of: Callable[[Row, Recording], Sequence[str]],
    ):
        self._model, self._find_cached, self._flags_of = model, find_cached, flags_of
        self._read_row = partial(read_row, sample_rate=model.sample_rate, max_duration=max_duration, decode=decode)

    def read(self, row: Row) -> ReadRow:
        """Return a row with its cached result, or else with its recording."""
        if (found := self._find_cached(row)) is not None:
            return ReadRow(row, None, self._model.count_frames(found.samples), found)
        return self._decode(row)

    def complete(self, read: ReadRow) -> ReadRow:
        """Return a row with its recording even if its result is cached: other rows of its batch are computed."""
        return replace(self._decode(read.row), cached=read.cached) if read.cached else read

    def _decode(self, row: Row) -> ReadRow:
        try:
            recording = self._read_row(row)
            self._model.check_waveform(recording.waveform)
            recording = replace(recording, flags=(*recording.flags, *self._flags_of(row, recording)))
        except Exception as error:
            return ReadRow(row, row_failure(error), frames=0)
        return ReadRow(row, recording, self._model.count_frames(len(recording.waveform)))
