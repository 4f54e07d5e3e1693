"""Contradictions in a WAV: it has no checksum, but it states some values twice.

Source: the RIFF specification; Microsoft's WAVEFORMATEX.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

from w2v_attn.audio.integrity.truncation import UNKNOWN_LENGTH_THRESHOLD

# Format codes of samples of a fixed size: PCM, float, A-law, µ-law, and the extensible format.
PCM, EXTENSIBLE = 0x0001, 0xFFFE
FIXED_SIZES = {PCM, 0x0003, 0x0006, 0x0007, EXTENSIBLE}
# Bytes of a format that are read; offset of the sub-format in an extensible one, a GUID that begins with a code.
FORMAT_BYTES, SUBFORMAT = 40, 24
GUID_END = bytes.fromhex("0000000010008000 00aa00389b71")
# Of compressed samples the header states the average bytes per second. A share of the frames, and seconds.
TOLERANCE, MIN_TOLERANCE = 0.05, 0.2


def wav_warnings(file: BinaryIO, frames: int, rate: int) -> list[str]:
    """Return warnings about an open file; none where it is not a WAV.

    Args:
        file: The file.
        frames: Number of frames that were decoded.
        rate: Their sample rate in Hz.
    """
    found, code, speed, stated = [], 0, 0, None
    for name, length, order in _chunks(file):
        if name == b"fmt ":
            form = file.read(FORMAT_BYTES)
            code, speed = _format_code(form, order), int.from_bytes(form[8:12], order)
            found += _format_warnings(form, order)
        if name == b"fact":
            stated = int.from_bytes(file.read(4), order)
        if name == b"data" and 0 < length < UNKNOWN_LENGTH_THRESHOLD:
            found += _trailing_warnings(file, length, order)
            expected = length * rate // max(1, speed)
            slack = 1 if code in FIXED_SIZES else TOLERANCE * frames + MIN_TOLERANCE * rate
            if code not in FIXED_SIZES and stated is not None and abs(frames - stated) <= slack:
                continue  # of compressed samples, many writers state a wrong speed, and the right number
            if not found and abs(frames - expected) > slack:
                found.append(f"header contradicts itself ({length} bytes at {speed} a second are not {frames} samples)")
    return found


def is_uncompressed_wav(file: BinaryIO) -> bool:
    """Return whether an open file is a WAV whose header states samples of a fixed size that libsndfile reads."""
    for name, _, order in _chunks(file):
        if name == b"fmt ":
            form = file.read(FORMAT_BYTES)
            code, bits = _format_code(form, order), int.from_bytes(form[14:16], order)
            return code in FIXED_SIZES and not (code == PCM and bits == 64 and not _format_warnings(form, order))
    return False


def find_missing_data_size(file: BinaryIO) -> int | None:
    """Return the offset of the size of the samples in an open WAV where it is 0 and samples follow; else None.

    Programs that write to a pipe cannot go back to fill it in. Others write the largest number, which libsndfile reads.
    """
    size = os.fstat(file.fileno()).st_size
    for name, length, order in _chunks(file):
        start = file.tell()
        is_followed = start < size and (size - start < 8 or not _are_chunks(file, start, size, order))
        if name == b"data" and length == 0 and is_followed:
            return start - 4
    return None


def is_extensible(form: bytes, order: Literal["little", "big"] = "little") -> bool:
    """Return whether a format is the extensible one, with a sub-format that is the code of another."""
    return int.from_bytes(form[:2], order) == EXTENSIBLE and form[SUBFORMAT + 2 : SUBFORMAT + 16] == GUID_END


def _format_code(form: bytes, order: Literal["little", "big"]) -> int:
    """Return the code of a format; of the extensible one that of its sub-format."""
    at = SUBFORMAT if is_extensible(form, order) else 0
    return int.from_bytes(form[at : at + 2], order)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, Literal["little", "big"]]]:
    """Yield (name, length in bytes, byte order) of each chunk up to the samples, with the file at its content."""
    file.seek(0)
    magic = file.read(12)
    if magic[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or magic[8:] != b"WAVE":
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
    channels, rate, speed, block, bits = (
        int.from_bytes(form[start:end], order) for start, end in ((2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
    )
    code = _format_code(form, order)
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
