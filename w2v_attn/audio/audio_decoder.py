"""Where recordings are decoded, and what is accepted of them."""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from w2v_attn.audio.decoder_subprocess import SubprocessDecoder
from w2v_attn.audio.read_audio import Recording, read_recording
from w2v_attn.audio.samples import MOST_CHANNELS, RATES, read_duration

KINDS = ("subprocess", "inline")


class AudioDecoder(Protocol):
    """Who decodes for a run, in any of its threads, until it is closed."""

    def read_recording(self, path: str | os.PathLike[str], **part: Any) -> Recording: ...

    def read_duration(self, path: str | os.PathLike[str]) -> float | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AudioDecoderOptions:
    """Where recordings are decoded, and what is accepted of them.

    kind: "inline", in the threads that read; "subprocess", in subprocesses that may hang, crash or want all memory.
    timeout: seconds that a subprocess may be without samples. memory_gb: that it may take beyond its libraries.
    sample_rates: Hz, the lowest and the highest that a file may declare. max_channels: that it may declare.

    Raises:
        ValueError: another kind, or numbers that no recording could meet.
    """

    kind: str = "inline"
    timeout: float = 60.0
    memory_gb: float = 1.0
    sample_rates: tuple[int, int] = RATES
    max_channels: int = MOST_CHANNELS

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

    def start(self) -> AudioDecoder:
        """The decoder; to be closed."""
        limits = {"rates": self.sample_rates, "max_channels": self.max_channels}
        if self.kind == "subprocess":
            return SubprocessDecoder(timeout=self.timeout, memory_gb=self.memory_gb, **limits)
        return _InlineDecoder(**limits)


class _InlineDecoder:
    def __init__(self, **limits: Any):
        self._limits = limits

    def read_recording(self, path: str | os.PathLike[str], **part: Any) -> Recording:
        return read_recording(path, **part, **self._limits)

    def read_duration(self, path: str | os.PathLike[str]) -> float | None:
        return read_duration(path)

    def close(self) -> None:
        """There is nothing to end."""


INLINE = AudioDecoderOptions()
