"""One file as mono float32 samples at any rate, block by block: all that touches what a file holds, and no torch.

So the processes of `worker` start in a sixth of a second.
"""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from w2v_attn.audio.decoders import AudioError, Source, open_source

RATES = (4_000, 384_000)
MOST_CHANNELS = 64
# Ordinary decoders and resamplers overshoot full scale a little; beyond this it is another scale altogether.
LOUD = 2.0
# Seconds that a part may be shorter than stated: manifests round.
PART_SLACK = 0.1


@dataclass(frozen=True)
class Findings:
    """What is known of a file when its samples are read; see `reading.Recording`."""

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
    rates: tuple[int, int] = RATES,
    max_channels: int = MOST_CHANNELS,
) -> Generator[np.ndarray, None, Findings]:
    """float32 [samples] blocks at `sample_rate`, the mean of the channels; at the end, what is known of the file.

    See `reading.read_recording`. What is wrong may be found at the last block: until then no block counts.

    Raises:
        AudioError: as `read_recording`.
    """
    with open_source(Path(path)) as source:
        if not rates[0] <= source.rate <= rates[1]:
            raise AudioError(f"declares a sample rate of {source.rate} Hz: expected {rates[0]} to {rates[1]} Hz")
        if source.channels > max_channels:
            raise AudioError(f"declares {source.channels} channels: expected {max_channels} at most")
        extent = Extent()
        part = _Part(source, offset, duration)
        for block in _resampled(_mono(part, max_duration, extent), source.rate, sample_rate):
            if not np.isfinite(block).all():
                raise AudioError(f"overflows when it is resampled: its samples reach {extent.high:.3g} × full scale")
            yield block
        flags = (*part.check_complete(), *extent.oddities())
        return Findings(source.rate, source.channels, flags)


def read_duration(path: str | os.PathLike[str]) -> float | None:
    """Seconds that a file's header promises, without decoding it; None where it does not say.

    Raises:
        AudioError: the file cannot be opened, or is no audio.
    """
    with open_source(Path(path)) as source:
        return source.promised


class _Part:
    """The frames of a source from `offset` on, `duration` long, both in seconds."""

    def __init__(self, source: Source, offset: float, duration: float | None):
        self.rate = source.rate
        self._source, self._offset, self._duration = source, offset, duration
        self._first = round(offset * source.rate)
        self._left = float("inf") if duration is None else max(1, round(duration * source.rate))

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [frames, channels], one after the other."""
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

    def nothing(self) -> str:
        """Why there are no samples."""
        return f"ends before {self._offset:g} s, where the part begins" if self._first else "holds no samples"

    def check_complete(self) -> list[str]:
        """As of the source, where all of it was read."""
        if self._duration is None:
            return self._source.check_complete() if self._first == 0 else []
        if self._left > PART_SLACK * self.rate:
            raise AudioError(f"ends before the part from {self._offset:g} s, {self._duration:g} s long, does")
        return []


@dataclass
class Extent:
    """The least and the greatest sample of a file, before resampling rounds its corners."""

    low: float = float("inf")
    high: float = float("-inf")

    def include(self, block: np.ndarray) -> None:
        self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))

    def oddities(self) -> Iterator[str]:
        """What is odd about these samples, in words."""
        if self.low == self.high:
            yield "all zeros" if self.low == 0 else "constant"
        peak = max(-self.low, self.high)
        if peak > LOUD:
            yield f"louder than full scale ({peak:.3g} ×)"


def _mono(source: "_Part", max_duration: float, extent: Extent) -> Iterator[np.ndarray]:
    """float32 [frames] blocks: the mean of the channels."""
    frames = 0
    for block in source.blocks():
        frames += len(block)
        if frames > max_duration * source.rate:
            raise AudioError(
                f"is longer than max_duration={max_duration:g} seconds: raise it if there is memory, or cut the file"
            )
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise AudioError(f"has NaN or infinite samples within its first {frames / source.rate:.1f} seconds")
        extent.include(mono)
        yield mono
    if frames == 0:
        raise AudioError(source.nothing())


def _resampled(blocks: Iterator[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Block by block, in constant memory for any pair of rates (a polyphase kernel for 44101 Hz would be gigabytes)."""
    if source_rate == rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
