"""Truncation: the length that a container's header states, compared with the size of the file.

In most formats libsndfile silently reads a truncated file as a shorter recording, because it takes the length from the
size of the file. So this module reads the header itself.

Source: the RIFF, AIFF and CAF specifications, RFC 3533 (Ogg), RFC 9639 (FLAC), Sun's AU header, NIST's SPHERE header.
"""

import os
from typing import BinaryIO

from w2v_attn.audio.integrity.video_containers import (
    ASF_HEADER,
    EBML,
    MP4_BOXES,
    asf_end,
    matroska_end,
    mp4_end,
)

# Writers that cannot seek back leave a length that means "unknown": 2³² − 1, or about 2³¹ (espeak-ng).
UNKNOWN_LENGTH_THRESHOLD = 0x7FFF_0000
W64_START = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
W64_GUID_END = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
OGG_END = 0x04
# A page of Ogg has at most 65,307 bytes, so the last page begins within the last 2¹⁷.
OGG_TAIL = 1 << 17


def find_truncation(file: BinaryIO) -> str | None:
    """Return which bytes are missing at the end of an open file; None where none are, or where it states no length."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(64)
    if start[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        stated = _riff_end(file, "big" if start[:4] == b"RIFX" else "little")
    elif start[:4] == b"FORM":
        stated = _chunk_end(file, 12, b"SSND", "big")
    elif start[:4] == b"riff":
        stated = _w64_end(file)
    elif start[:4] == b"caff":
        stated = _caf_end(file)
    elif start[:4] == b".snd":
        offset, length = int.from_bytes(start[4:8], "big"), int.from_bytes(start[8:12], "big")
        stated = None if length >= UNKNOWN_LENGTH_THRESHOLD else offset + length
    elif start[:7] == b"NIST_1A":
        stated = _sphere_end(file)
    elif start[:4] == b"OggS":
        return _ogg_without_end(file, size)
    elif start[4:8] in MP4_BOXES:
        stated = mp4_end(file, size)
    elif start[:4] == EBML:
        stated = matroska_end(file)
    elif start[:16] == ASF_HEADER:
        stated = asf_end(file)
    else:
        return None
    if stated is not None and stated > size:
        return f"its header states {stated} bytes, the file has {size}"
    return None


def sphere_warnings(file: BinaryIO, frames: int) -> list[str]:
    """Return warnings about an open file if it is a SPHERE: its decoder reads all bytes after the header as samples.

    Args:
        file: The file.
        frames: Number of frames that were decoded.
    """
    stated = _sphere_fields(file).get("sample_count", "")
    if stated.isdecimal() and int(stated) != frames:
        return [f"header claims {stated} samples, the file holds {frames}"]
    return []


def _riff_end(file: BinaryIO, order: str) -> int | None:
    file.seek(12)
    long_length = None
    while len(header := file.read(8)) == 8:
        name, length = header[:4], int.from_bytes(header[4:], order)  # type: ignore[arg-type]
        if name == b"ds64":  # RF64 has the length of its data here, after 8 bytes of the file's size
            long_length = int.from_bytes(file.read(length)[8:16], "little")
            continue
        if name == b"data":
            if length == 0xFFFF_FFFF and long_length is not None:
                return file.tell() + long_length
            return None if length >= UNKNOWN_LENGTH_THRESHOLD else file.tell() + length
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _chunk_end(file: BinaryIO, at: int, wanted: bytes, order: str) -> int | None:
    file.seek(at)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[4:], order)  # type: ignore[arg-type]
        if header[:4] == wanted:
            return file.tell() + length
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def find_w64_chunk(file: BinaryIO, wanted: bytes) -> int | None:
    """Return the offset of the chunk of this name in an open W64; None where there is none."""
    at = 40
    while True:
        file.seek(at)
        header = file.read(24)
        length = int.from_bytes(header[16:], "little")  # includes these 24 bytes
        if header[:16] == wanted:
            return at
        if len(header) < 24 or length < 24:
            return None
        at += (length + 7) // 8 * 8


def _w64_end(file: BinaryIO) -> int | None:
    at = find_w64_chunk(file, b"data" + W64_GUID_END)
    if at is None:
        return None
    file.seek(at + 16)
    return at + int.from_bytes(file.read(8), "little")


def _caf_end(file: BinaryIO) -> int | None:
    file.seek(8)
    while len(header := file.read(12)) == 12:
        length = int.from_bytes(header[4:], "big", signed=True)  # −1: unknown
        if header[:4] == b"data" or length < 0:
            return None if length < 0 else file.tell() + length
        file.seek(length, os.SEEK_CUR)
    return None


def _sphere_fields(file: BinaryIO) -> dict[str, str]:
    """Return the fields of a SPHERE's header; the length of the header itself under an empty name."""
    file.seek(0)
    lines = file.read(1024).decode("latin-1").splitlines()
    fields = {}
    if lines[:1] != ["NIST_1A"]:
        return fields
    fields[""] = lines[1] if len(lines) > 1 else ""
    for line in lines[2:]:
        if line.strip() == "end_head":
            break
        parts = line.split(None, 2)
        if len(parts) == 3:
            fields[parts[0]] = parts[2]
    return fields


def _sphere_end(file: BinaryIO) -> int | None:
    fields = _sphere_fields(file)
    try:
        header = int(fields[""])
        frames, channels, width = (int(fields[k]) for k in ("sample_count", "channel_count", "sample_n_bytes"))
    except (KeyError, ValueError):
        return None
    coding = fields.get("sample_coding", "pcm")
    return None if "embedded" in coding else header + frames * channels * width


def _ogg_without_end(file: BinaryIO, size: int) -> str | None:
    file.seek(max(0, size - OGG_TAIL))
    tail = file.read()
    last = tail.rfind(b"OggS")
    if last >= 0 and len(tail) > last + 26:
        segments = tail[last + 26]
        table = tail[last + 27 : last + 27 + segments]
        page_end = last + 27 + segments + sum(table)
        if tail[last + 5] & OGG_END and len(table) == segments and page_end <= len(tail):
            return None
    return "its last page is not marked as the end of the stream"
