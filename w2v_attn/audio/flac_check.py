"""`FlacCheck`: whether a decoded FLAC is what its header states, by its checksum and its number of samples."""

import hashlib

import numpy as np

from w2v_attn.audio.audio_source import AudioError
from w2v_attn.audio.integrity.flac import FlacHeader


class FlacCheck:
    """Compares the samples of a FLAC with its header, block by block.

    Args:
        header: The header.
    """

    def __init__(self, header: FlacHeader):
        self._header, self._frames = header, 0
        self._md5 = hashlib.md5(usedforsecurity=False)

    def include(self, block: np.ndarray) -> np.ndarray:
        """Add a block of samples, int32 [frames, channels] with full scale 2³¹, and return it as float32."""
        bits = self._header.format.bits or 32
        samples = (block >> (32 - bits)).astype("<i4")
        as_bytes = samples.view(np.uint8).reshape(*samples.shape, 4)[..., : (bits + 7) // 8]
        self._md5.update(as_bytes.tobytes())
        self._frames += len(block)
        return samples.astype(np.float32) / np.float32(1 << (bits - 1))

    def check(self) -> list[str]:
        """Return warnings, after the last block.

        Raises:
            AudioError: samples are missing or damaged.
        """
        checksum, stated, found = self._header.checksum, self._header.samples, self._frames
        if checksum is not None and checksum != self._md5.digest():
            raise AudioError("is damaged: its samples do not match the checksum in its header", kind="damaged")
        if stated == 0:
            return ["header does not state the length"]
        if stated == found:
            return []
        if checksum is None and found < stated:
            raise AudioError(
                f"is truncated: its header states {stated} samples, the file holds {found}", kind="truncated"
            )
        return [f"header claims {stated} samples, the file holds {found}"]
