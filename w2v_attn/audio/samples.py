"""An audio file as mono float32 samples at any sample rate, block by block.

This module and what it imports need no torch, so that the subprocesses of `worker` start in a sixth of a second.
"""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from w2v_attn.audio.audio_source import AudioError, AudioSource
from w2v_attn.audio.channels import MEAN, channel_number, missing_channel_reason
from w2v_attn.audio.decoders import open_source
from w2v_attn.audio.signal_checks import SignalChecks

# Lowest and highest sample rate that a file may declare by default, in Hz.
SAMPLE_RATE_LIMITS = (4_000, 384_000)
MAX_CHANNELS = 64
# Seconds that a segment may be shorter than stated: manifests round.
SEGMENT_SLACK = 0.1


@dataclass(frozen=True)
class AudioInfo:
    """What is known about a file once its samples are read; see `read_audio.Recording`."""

    source_rate: int
    source_channels: int
    flags: tuple[str, ...]
    channel: int | None = None


def read_samples(
    path: str | os.PathLike[str],
    *,
    sample_rate: int,
    max_duration: float = float("inf"),
    offset: float = 0.0,
    duration: float | None = None,
    channel: str | int = MEAN,
    rates: tuple[int, int] = SAMPLE_RATE_LIMITS,
    max_channels: int = MAX_CHANNELS,
) -> Generator[np.ndarray, None, AudioInfo]:
    """Yield blocks of float32 [samples] at `sample_rate` of a channel or the mean; return information about the file.

    For the arguments see `read_audio.read_recording`. Damage may be found only after the last block: the blocks are
    valid once the generator has returned.

    Raises:
        AudioError: see `read_recording`.
        ValueError: `channel` is none that a recording could have.
    """
    number = channel_number(channel)
    with open_source(Path(path)) as source:
        if not rates[0] <= source.rate <= rates[1]:
            raise AudioError(
                f"declares a sample rate of {source.rate} Hz: expected {rates[0]} to {rates[1]} Hz", kind="bad_rate"
            )
        if source.channels > max_channels:
            raise AudioError(
                f"declares {source.channels} channels: expected {max_channels} at most", kind="too_many_channels"
            )
        if number is not None and number >= source.channels:
            raise AudioError(missing_channel_reason(channel, source.channels), kind="no_channel")
        checks = SignalChecks()
        segment = _Segment(source, offset, duration)
        for block in resample_blocks(_mono(segment, max_duration, number, checks), source.rate, sample_rate):
            if not np.isfinite(block).all():
                raise AudioError(
                    f"overflows when it is resampled: its samples reach {checks.peak:.3g} × full scale",
                    kind="non_finite",
                )
            yield block
        flags = (*segment.check_complete(), *checks.warnings())
        return AudioInfo(source.rate, source.channels, flags, number)


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

    def empty_error(self) -> AudioError:
        """Return the error of a segment without samples."""
        if self._first:
            return AudioError(f"ends before {self._offset:g} s, where the segment begins", kind="outside")
        return AudioError("holds no samples", kind="no_samples")

    def check_complete(self) -> list[str]:
        """Return the source's warnings where all of it was read.

        Raises:
            AudioError: the segment is not inside the file, or the file is damaged.
        """
        if self._duration is None:
            return self._source.check_complete() if self._first == 0 else []
        if self._left > SEGMENT_SLACK * self.rate:
            raise AudioError(
                f"ends before {self._offset + self._duration:g} s, where the segment from {self._offset:g} s ends",
                kind="outside",
            )
        return []


def _mono(source: "_Segment", max_duration: float, channel: int | None, checks: SignalChecks) -> Iterator[np.ndarray]:
    """Yield blocks of float32 [frames]: one channel, or the mean of all."""
    frames = 0
    for block in source.blocks():
        frames += len(block)
        if frames > max_duration * source.rate:
            raise AudioError(
                f"is longer than max_duration={max_duration:g} seconds: raise the limit if there is enough memory, or "
                "split the file",
                kind="too_long",
            )
        used = block if channel is None else block[:, channel : channel + 1]
        mono = np.ascontiguousarray(used[:, 0]) if used.shape[1] == 1 else used.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise AudioError(
                f"has NaN or infinite samples within its first {frames / source.rate:.1f} seconds", kind="non_finite"
            )
        checks.include(used, mono)
        yield mono
    if frames == 0:
        raise source.empty_error()


def resample_blocks(blocks: Iterator[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Yield blocks of float32 [samples] at another sample rate, in constant memory for any pair of rates.

    A polyphase kernel for 44101 Hz would take gigabytes.
    """
    if source_rate == rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
