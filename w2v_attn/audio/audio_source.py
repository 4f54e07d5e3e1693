"""`AudioSource`: the interface of an open recording, whichever library decodes it; and the error of one that fails."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from w2v_attn.run_error import RecordingError


class AudioError(RecordingError):
    """The error of an audio file that cannot be used. The text completes a sentence that begins with its path."""


class AudioSource(ABC):
    """An open recording.

    Attributes:
        rate: Sample rate in Hz.
        channels: Number of channels of each block.
    """

    rate: int
    channels: int

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of float32 [frames, channels] to the end of the file."""

    def skip(self, frames: int) -> int:
        """Seek past up to `frames` frames before the first block is read; return how many were skipped."""
        return 0

    @property
    @abstractmethod
    def header_duration(self) -> float | None:
        """Seconds that the header states; None where it does not."""

    @abstractmethod
    def check_complete(self) -> list[str]:
        """Return warnings about the file, after its last block was read.

        Raises:
            AudioError: samples are missing or damaged.
        """
