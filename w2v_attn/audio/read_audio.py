# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""`read_audio`: an audio file as a mono float32 waveform at the model's sample rate."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from w2v_attn.audio.audio_source import AudioError as AudioError
from w2v_attn.audio.channels import MEAN, conversions
from w2v_attn.audio.samples import MAX_CHANNELS, SAMPLE_RATE_LIMITS, AudioInfo, read_samples

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Recording:
    """A decoded file, or a segment of one.

    Attributes:
        waveform: float32 [samples] at `sample_rate`, channels averaged or one of them, full scale ±1, not normalised.
        sample_rate: Hz.
        source_rate: Sample rate of the file, in Hz.
        source_channels: Number of channels of the file.
        flags: Warnings about a usable file: "all zeros", "clipped …", "louder than full scale …", "header claims …".
        source: What distinguishes this state of the file from later ones, where requested; see
            `runs.row_reader.source_state`.
        channel: Number of the channel that was read, from 0; None: the mean of all.
    """

    waveform: Tensor
    sample_rate: int
    source_rate: int
    source_channels: int
    flags: tuple[str, ...]
    source: str = ""
    channel: int | None = None

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.waveform) / self.sample_rate

    @property
    def conversions(self) -> tuple[str, ...]:
        """How the file was converted, such as "resampled from 8 kHz"; see `channels.conversions`."""
        return conversions(self.source_rate, self.sample_rate, self.source_channels, self.channel)


def read_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int = SAMPLE_RATE,
    max_duration: float = float("inf"),
    channel: str | int = MEAN,
) -> Tensor:
    """Return the waveform of an audio file: resampled, channels averaged, not normalised.

    Supports the formats of libsndfile (wav, flac, mp3, ogg, opus, aiff, sph, caf, au, …; the content decides, not the
    name), and with the extra `av` those of FFmpeg (m4a, mp4, webm, …). Memory depends on the samples that the file
    contains, not on what its header states.

    Args:
        path: The file.
        sample_rate: Sample rate of the result, in Hz.
        max_duration: Seconds; reading a longer recording stops with an error.
        channel: "mean" of all channels, "left", "right", or the number of one, from 0.

    Returns:
        float32 [samples] at `sample_rate`, full scale ±1.

    Raises:
        AudioError: the file cannot be read, is not audio, is damaged or truncated, has no samples or NaN, declares a
            sample rate outside 4–384 kHz or more than 64 channels, does not have `channel`, or is longer than
            `max_duration`. It is a ValueError; its text is the reason, and its `kind` is one of
            `run_error.FAILURE_KINDS`.
        ValueError: `channel` is none that a recording could have.
    """
    return read_recording(path, sample_rate=sample_rate, max_duration=max_duration, channel=channel).waveform


def read_recording(
    path: str | os.PathLike[str],
    *,
    sample_rate: int = SAMPLE_RATE,
    max_duration: float = float("inf"),
    offset: float = 0.0,
    duration: float | None = None,
    channel: str | int = MEAN,
    rates: tuple[int, int] = SAMPLE_RATE_LIMITS,
    max_channels: int = MAX_CHANNELS,
) -> Recording:
    """Return the waveform of an audio file or of a segment of it, with information about the file.

    Args:
        path: The file.
        sample_rate: Sample rate of the result, in Hz.
        max_duration: Seconds; reading a longer recording stops with an error.
        offset: Start of the segment, in seconds.
        duration: Length of the segment, in seconds; None: to the end. The rest of the file is not checked.
        channel: See `read_audio`.
        rates: Lowest and highest sample rate that a file may declare, in Hz.
        max_channels: Most channels that a file may declare.

    Raises:
        AudioError: see `read_audio`; or the segment is not inside the file.
    """
    reader = read_samples(
        path,
        sample_rate=sample_rate,
        max_duration=max_duration,
        offset=offset,
        duration=duration,
        channel=channel,
        rates=rates,
        max_channels=max_channels,
    )
    blocks: list[np.ndarray] = []
    while True:
        try:
            blocks.append(next(reader))
        except StopIteration as end:
            return recording_of(blocks, sample_rate, end.value)


def recording_of(blocks: Sequence[np.ndarray], sample_rate: int, info: AudioInfo) -> Recording:
    """Return the recording that consists of these blocks of float32 [samples]."""
    waveform = blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks])
    return Recording(torch.from_numpy(waveform), sample_rate, **vars(info))  # type: ignore[reportUnknownMemberType]
