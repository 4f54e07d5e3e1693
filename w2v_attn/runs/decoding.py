"""Where recordings are decoded, and what is accepted of them."""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from w2v_attn.audio.reading import Recording, read_recording
from w2v_attn.audio.samples import MOST_CHANNELS, RATES, read_duration
from w2v_attn.runs.apart import Apart

KINDS = ("apart", "here")


class Decoder(Protocol):
    """Who decodes for a run, in any of its threads, until it is closed."""

    def read_recording(self, path: str | os.PathLike[str], **part: Any) -> Recording: ...

    def read_duration(self, path: str | os.PathLike[str]) -> float | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Where recordings are decoded, and what is accepted of them.

    kind: "here", in the threads that read; "apart", in processes that may hang, crash or want all memory.
    seconds: that a decoder apart may be without samples. gigabytes: that it may take beyond its libraries.
    rates: Hz, the lowest and the highest that a file may declare. max_channels: that it may declare.

    Raises:
        ValueError: another kind, or numbers that no recording could meet.
    """

    kind: str = "here"
    seconds: float = 60.0
    gigabytes: float = 1.0
    rates: tuple[int, int] = RATES
    max_channels: int = MOST_CHANNELS

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"decoding.kind must be {' or '.join(KINDS)}, got {self.kind}")
        for name in ("seconds", "gigabytes", "max_channels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"decoding.{name} must be above 0, got {getattr(self, name)}")
        if len(self.rates) != 2 or not 0 < self.rates[0] <= self.rates[1]:
            raise ValueError(f"decoding.rates must be [lowest,highest] in Hz, got {list(self.rates)}")

    def start(self) -> Decoder:
        """The decoder; to be closed."""
        limits = {"rates": self.rates, "max_channels": self.max_channels}
        if self.kind == "apart":
            return Apart(seconds=self.seconds, gigabytes=self.gigabytes, **limits)
        return _Here(**limits)


class _Here:
    def __init__(self, **limits: Any):
        self._limits = limits

    def read_recording(self, path: str | os.PathLike[str], **part: Any) -> Recording:
        return read_recording(path, **part, **self._limits)

    def read_duration(self, path: str | os.PathLike[str]) -> float | None:
        return read_duration(path)

    def close(self) -> None:
        """There is nothing to end."""


HERE = Decoding()
