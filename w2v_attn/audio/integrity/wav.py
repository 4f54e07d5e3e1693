"""Contradictions in a WAV: it has no checksum, but it states some values twice.

Source: the RIFF specification; Microsoft's WAVEFORMATEX.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

from w2v_attn.audio.integrity.truncation import UNKNOWN_LENGTH_THRESHOLD

# Format codes of samples of a fixed size: PCM, float, A-law, µ-law, and the extensible format.
FIXED_SIZES = {0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE}
# Of compressed samples the header states the average bytes per second. A share of the frames, and seconds.
TOLERANCE, MIN_TOLERANCE = 0.05, 0.2


def wav_warnings(file: BinaryIO, frames: int, rate: int) -> list[str]:
    """Return warnings about an open file; none where it is not a WAV.

    Args:
        file: The file.
        frames: Number of frames that were decoded.
        rate: Their sample rate in Hz.
    """
    found, code, speed = [], 0, 0
    for name, length, order in _chunks(file):
        if name == b"fmt ":
            form = file.read(16)
            code, speed = int.from_bytes(form[:2], order), int.from_bytes(form[8:12], order)
            found += _format_warnings(form, order)
        if name == b"data" and length < UNKNOWN_LENGTH_THRESHOLD:
            found += _trailing_warnings(file, length, order)
            expected = length * rate // max(1, speed)
            slack = 1 if code in FIXED_SIZES else TOLERANCE * frames + MIN_TOLERANCE * rate
            if not found and abs(frames - expected) > slack:
                found.append(f"header contradicts itself ({length} bytes at {speed} a second are not {frames} samples)")
    return found


def is_uncompressed_wav(file: BinaryIO) -> bool:
    """Return whether an open file is a WAV whose header states samples of a fixed size."""
    codes = [int.from_bytes(file.read(2), order) for name, _, order in _chunks(file) if name == b"fmt "]
    return any(code in FIXED_SIZES for code in codes)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, Literal["little", "big"]]]:
    """Yield (name, length in bytes, byte order) of each chunk up to the samples, with the file at its content."""
    file.seek(0)
    magic = file.read(12)
    if magic[:4] not in (b"RIFF", b"RIFX", b"RF64") or magic[8:] != b"WAVE":
        return
    order = "big" if magic[:4] == b"RIFX" else "little"
    at, name = 12, b""
    while name != b"data":
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        name, length = head[:4], int.from_bytes(head[4:], order)
        yield name, length, order
        at += 8 + length + length % 2


def _format_warnings(form: bytes, order: Literal["little", "big"]) -> list[str]:
    code, channels, rate, speed, block, bits = (
        int.from_bytes(form[start:end], order) for start, end in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
    )
    if code not in FIXED_SIZES:
        return []
    width = (bits + 7) // 8
    if block != channels * width:
        return [f"header contradicts itself ({channels} channels of {width} bytes are not {block} bytes)"]
    if speed != rate * block:
        return [f"header contradicts itself ({rate} Hz of {block} bytes are not {speed} bytes a second)"]
    return []


def _trailing_warnings(file: BinaryIO, length: int, order: Literal["little", "big"]) -> list[str]:
    """Return a warning where the bytes after the samples are not chunks: the writer did not update its header."""
    size, end = os.fstat(file.fileno()).st_size, file.tell() + length
    if end >= size or any(_are_chunks(file, start, size, order) for start in (end, end + length % 2)):
        return []
    return [f"bytes behind its samples ({size - end}, which are no chunk: samples that its header does not count?)"]


def _are_chunks(file: BinaryIO, at: int, size: int, order: Literal["little", "big"]) -> bool:
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        if not all(32 <= byte < 127 for byte in head[:4]):
            return False
        length = int.from_bytes(head[4:], order)
        at += 8 + length + length % 2
    return at <= size + 1
