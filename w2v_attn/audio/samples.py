"""An audio file as mono float32 samples at any sample rate, block by block.

This module and what it imports need no torch, so that the subprocesses of `worker` start in a sixth of a second.
"""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from w2v_attn.audio.decoders import AudioError, AudioSource, open_source

# Lowest and highest sample rate that a file may declare by default, in Hz.
SAMPLE_RATE_LIMITS = (4_000, 384_000)
MAX_CHANNELS = 64
# Decoders and resamplers overshoot full scale a little; a peak above this means that the samples have another scale.
LOUD_THRESHOLD = 2.0
# Seconds that a segment may be shorter than stated: manifests round.
SEGMENT_SLACK = 0.1


@dataclass(frozen=True)
class AudioInfo:
    """What is known about a file once its samples are read; see `read_audio.Recording`."""

    source_rate: int
    source_channels: int
    flags: tuple[str, ...]


def read_samples(
    path: str | os.PathLike[str],
    *,
    sample_rate: int,
    max_duration: float = float("inf"),
    offset: float = 0.0,
    duration: float | None = None,
    rates: tuple[int, int] = SAMPLE_RATE_LIMITS,
    max_channels: int = MAX_CHANNELS,
) -> Generator[np.ndarray, None, AudioInfo]:
    """Yield blocks of float32 [samples] at `sample_rate`, the mean of the channels; return information about the file.

    For the arguments see `read_audio.read_recording`. Damage may be found only after the last block: the blocks are
    valid once the generator has returned.

    Raises:
        AudioError: see `read_recording`.
    """
    with open_source(Path(path)) as source:
        if not rates[0] <= source.rate <= rates[1]:
            raise AudioError(f"declares a sample rate of {source.rate} Hz: expected {rates[0]} to {rates[1]} Hz")
        if source.channels > max_channels:
            raise AudioError(f"declares {source.channels} channels: expected {max_channels} at most")
        extent = SampleExtent()
        segment = _Segment(source, offset, duration)
        for block in _resampled(_mono(segment, max_duration, extent), source.rate, sample_rate):
            if not np.isfinite(block).all():
                raise AudioError(f"overflows when it is resampled: its samples reach {extent.high:.3g} × full scale")
            yield block
        flags = (*segment.check_complete(), *extent.warnings())
        return AudioInfo(source.rate, source.channels, flags)


def read_duration(path: str | os.PathLike[str]) -> float | None:
    """Return the seconds that a file's header states, without decoding it; None where it does not state them.

    Raises:
        AudioError: the file cannot be opened, or is not audio.
    """
    with open_source(Path(path)) as source:
        return source.header_duration


class _Segment:
    """The frames of a source from `offset` on, `duration` long, both in seconds."""

    def __init__(self, source: AudioSource, offset: float, duration: float | None):
        self.rate = source.rate
        self._source, self._offset, self._duration = source, offset, duration
        self._first = round(offset * source.rate)
        self._left = float("inf") if duration is None else max(1, round(duration * source.rate))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of float32 [frames, channels]."""
        skipped = self._source.skip(self._first)
        for block in self._source.blocks():
            inside = block[max(0, self._first - skipped) :]
            skipped += len(block) - len(inside)
            if len(inside) > 0:
                taken = inside[: int(min(self._left, len(inside)))]
                self._left -= len(taken)
                yield taken
            if self._left == 0:
                return

    def empty_reason(self) -> str:
        """Return why there are no samples."""
        return f"ends before {self._offset:g} s, where the segment begins" if self._first else "holds no samples"

    def check_complete(self) -> list[str]:
        """Return the source's warnings where all of it was read.

        Raises:
            AudioError: the segment is not inside the file, or the file is damaged.
        """
        if self._duration is None:
            return self._source.check_complete() if self._first == 0 else []
        if self._left > SEGMENT_SLACK * self.rate:
            raise AudioError(
                f"ends before {self._offset + self._duration:g} s, where the segment from {self._offset:g} s ends"
            )
        return []


@dataclass
class SampleExtent:
    """The smallest and the largest sample of a file, before resampling smooths its peaks."""

    low: float = float("inf")
    high: float = float("-inf")

    def include(self, block: np.ndarray) -> None:
        """Extend the range by a block of samples."""
        self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))

    def warnings(self) -> Iterator[str]:
        """Yield warnings about unusual samples."""
        if self.low == self.high:
            yield "all zeros" if self.low == 0 else "constant"
        peak = max(-self.low, self.high)
        if peak > LOUD_THRESHOLD:
            yield f"louder than full scale ({peak:.3g} ×)"


def _mono(source: "_Segment", max_duration: float, extent: SampleExtent) -> Iterator[np.ndarray]:
    """Yield blocks of float32 [frames]: the mean of the channels."""
    frames = 0
    for block in source.blocks():
        frames += len(block)
        if frames > max_duration * source.rate:
            raise AudioError(
                f"is longer than max_duration={max_duration:g} seconds: raise the limit if there is enough memory, or "
                "split the file"
            )
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise AudioError(f"has NaN or infinite samples within its first {frames / source.rate:.1f} seconds")
        extent.include(mono)
        yield mono
    if frames == 0:
        raise AudioError(source.empty_reason())


def _resampled(blocks: Iterator[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Resample block by block, in constant memory for any pair of rates.

    A polyphase kernel for 44101 Hz would take gigabytes.
    """
    if source_rate == rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
