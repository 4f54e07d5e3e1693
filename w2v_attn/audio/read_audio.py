"""`read_audio`: one file as mono float32 at the rate of the model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from w2v_attn.audio.decoders import AudioError as AudioError
from w2v_attn.audio.samples import MOST_CHANNELS, RATES, Findings, read_samples

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Recording:
    """One decoded file.

    waveform: float32 [samples] at `sample_rate`, channels averaged, as recorded: full scale is ±1, nothing normalised.
    source_rate, source_channels: what the file holds.
    flags: what is odd but usable, in words: "all zeros", "constant", "louder than full scale …", "header claims …".
    source: what tells this state of the file from later ones, where somebody asked; see `runs.row_reader.source_state`.
    """

    waveform: Tensor
    sample_rate: int
    source_rate: int
    source_channels: int
    flags: tuple[str, ...]
    source: str = ""

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.waveform) / self.sample_rate


def read_audio(
    path: str | os.PathLike[str], *, sample_rate: int = SAMPLE_RATE, max_duration: float = float("inf")
) -> Tensor:
    """Read the waveform of an audio file, as recorded: resampled, channels averaged, not normalised.

    Reads what libsndfile reads (wav, flac, mp3, ogg, opus, aiff, sph, caf, au, …; the content decides, not the name),
    and with the extra `av` what FFmpeg reads (m4a, mp4, webm, …). Memory is bounded by what the file really holds.

    Args:
        path: The file.
        sample_rate: Rate of the result, in Hz.
        max_duration: Seconds; a longer recording is an error, and is not read further.

    Returns:
        float32 [samples] at `sample_rate`, full scale ±1.

    Raises:
        AudioError: the file cannot be read, is no audio, is damaged or truncated, holds no samples or NaN, declares a
            rate outside 4–384 kHz or more than 64 channels, or is longer than `max_duration`. A ValueError; its text is
            the reason.
    """
    return read_recording(path, sample_rate=sample_rate, max_duration=max_duration).waveform


def read_recording(
    path: str | os.PathLike[str],
    *,
    sample_rate: int = SAMPLE_RATE,
    max_duration: float = float("inf"),
    offset: float = 0.0,
    duration: float | None = None,
    rates: tuple[int, int] = RATES,
    max_channels: int = MOST_CHANNELS,
) -> Recording:
    """Like `read_audio`, with what is known about the file.

    offset, duration: seconds, of the part to read; None: to the end. What is not read of a file is not checked either.
    rates: Hz, the lowest and the highest that a file may declare. max_channels: that it may declare.

    Raises:
        AudioError: as `read_audio`; or the part does not lie inside the file.
    """
    reading = read_samples(
        path,
        sample_rate=sample_rate,
        max_duration=max_duration,
        offset=offset,
        duration=duration,
        rates=rates,
        max_channels=max_channels,
    )
    blocks = []
    while True:
        try:
            blocks.append(next(reading))
        except StopIteration as end:
            return recording_of(blocks, sample_rate, end.value)


def recording_of(blocks: Sequence[np.ndarray], sample_rate: int, findings: Findings) -> Recording:
    """The recording that was read in these blocks."""
    waveform = blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks])
    return Recording(torch.from_numpy(waveform), sample_rate, **vars(findings))
