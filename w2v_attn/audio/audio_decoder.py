"""Options of the audio decoder: in this process or in subprocesses, and the limits on what it accepts."""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from w2v_attn.audio.channels import MEAN, channel_number
from w2v_attn.audio.decoder_subprocess import SubprocessDecoder
from w2v_attn.audio.read_audio import Recording, read_recording
from w2v_attn.audio.samples import MAX_CHANNELS, SAMPLE_RATE_LIMITS, read_duration

KINDS = ("subprocess", "inline")


class AudioDecoder(Protocol):
    """A decoder that any thread may use, until it is closed."""

    def read_recording(self, path: str | os.PathLike[str], **part: Any) -> Recording: ...

    def read_duration(self, path: str | os.PathLike[str]) -> float | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AudioDecoderOptions:
    """Where recordings are decoded, what is accepted, and which channel is read.

    Args:
        kind: "inline" decodes in the threads that read; "subprocess" in subprocesses, which may hang, crash or run out
            of memory without harm to the run.
        timeout: Seconds that a subprocess may take until its next block of samples.
        memory_gb: Memory in GB that a subprocess may allocate beyond what its libraries need.
        sample_rates: Lowest and highest sample rate in Hz that a file may declare.
        max_channels: Most channels that a file may declare.
        channel: The channel that is read of each file: "mean" of all, "left", "right", or a number from 0.

    Raises:
        ValueError: an unknown kind or channel, or limits that no recording can meet.
    """

    kind: str = "inline"
    timeout: float = 60.0
    memory_gb: float = 1.0
    sample_rates: tuple[int, int] = SAMPLE_RATE_LIMITS
    max_channels: int = MAX_CHANNELS
    channel: str | int = MEAN

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"audio_decoder.kind must be {' or '.join(KINDS)}, got {self.kind}")
        for name in ("timeout", "memory_gb", "max_channels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"audio_decoder.{name} must be above 0, got {getattr(self, name)}")
        if len(self.sample_rates) != 2 or not 0 < self.sample_rates[0] <= self.sample_rates[1]:
            raise ValueError(
                f"audio_decoder.sample_rates must be [lowest,highest] in Hz, got {list(self.sample_rates)}"
            )

        channel_number(self.channel)

    def start(self) -> AudioDecoder:
        """Start the decoder; the caller closes it."""
        limits = {"rates": self.sample_rates, "max_channels": self.max_channels, "channel": self.channel}
        if self.kind == "subprocess":
            return SubprocessDecoder(timeout=self.timeout, memory_gb=self.memory_gb, **limits)
        return _InlineDecoder(**limits)


class _InlineDecoder:
    def __init__(self, **limits: Any):
        self._limits = limits

    def read_recording(self, path: str | os.PathLike[str], **part: Any) -> Recording:
        return read_recording(path, **{**self._limits, **part})

    def read_duration(self, path: str | os.PathLike[str]) -> float | None:
        return read_duration(path)

    def close(self) -> None:
        """Do nothing: there is no process to end."""


INLINE = AudioDecoderOptions()
