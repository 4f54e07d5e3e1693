"""The length that MP4, Matroska (WebM) and ASF (WMA) state: FFmpeg reads truncated ones as shorter recordings.

Source: ISO/IEC 14496-12 (boxes), RFC 8794 (EBML) and RFC 9559 (Matroska), Microsoft's ASF specification.
"""

import os
from typing import BinaryIO

# Types of the first box of an MP4 or QuickTime file.
MP4_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
# Offsets in ASF's file properties: the size of the file, and flags, of which the lowest is that of a broadcast.
ASF_SIZE, ASF_FLAGS, ASF_BROADCAST = 40, 88, 1


def mp4_end(file: BinaryIO, size: int) -> int | None:
    """Return the offset in bytes at which the last box of an open MP4 ends; None where it ends with the file."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a longer number follows
            length = int.from_bytes(head[8:], "big")
        if length < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in head[4:8]):
            return None  # to the end of the file, or no box
        at += length
    return at if at > size else None


def matroska_end(file: BinaryIO) -> int | None:
    """Return the offset in bytes at which the segment of an open Matroska file ends; None for a live stream."""
    file.seek(len(EBML))
    header = _vint(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return None
    length = _vint(file)
    return None if length is None else file.tell() + length


def asf_end(file: BinaryIO) -> int | None:
    """Return the size in bytes that the header of an open ASF states; None for a broadcast."""
    file.seek(24)
    objects = int.from_bytes(file.read(4), "little")
    at = 30
    for _ in range(min(objects, 64)):
        file.seek(at)
        found = file.read(ASF_FLAGS + 4)
        if len(found) < 24:
            return None
        if found[:16] == ASF_FILE_PROPERTIES:
            is_broadcast = int.from_bytes(found[ASF_FLAGS:], "little") & ASF_BROADCAST
            return None if is_broadcast else int.from_bytes(found[ASF_SIZE : ASF_SIZE + 8], "little")
        at += max(24, int.from_bytes(found[16:24], "little"))
    return None


def _vint(file: BinaryIO) -> int | None:
    """Read a number of EBML, whose first byte states its length; return None where all bits are 1: unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    content = bytes([first[0] & (0xFF >> width)]) + file.read(width - 1)
    value = int.from_bytes(content, "big")
    return None if value == (1 << 7 * width) - 1 else value
