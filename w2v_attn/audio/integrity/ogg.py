"""Missing and damaged pages of an Ogg file.

Decoders silently skip a page that is missing or whose checksum is wrong, and up to several seconds of sound with it. So
this module checks the page numbers and the checksums.

Source: RFC 3533, section 6.
"""

import os
import zlib
from itertools import pairwise
from typing import Any, BinaryIO

from w2v_attn.audio.file_part import FilePart

CAPTURE = b"OggS"
# Bytes of a page's head without its segment table; the largest number of segments.
HEAD_BYTES, MAX_SEGMENTS = 27, 255
# Flags of a stream's first and last page.
BEGIN_FLAG, END_FLAG = 0x02, 0x04
SEARCH_BYTES = 1 << 16
# Ogg's CRC processes the bits of a byte from the highest, zlib's from the lowest, with the same polynomial.
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def find_ogg_damage(file: BinaryIO) -> str | None:
    """Return what is wrong with the pages of an open file; None where nothing is, or where it is not an Ogg.

    The text completes a sentence that begins with the path. Bytes between pages are ignored as long as no page is
    missing. Several recordings may follow each other, each with its own streams ("chained").
    """
    file.seek(0)
    if file.read(4) != CAPTURE:
        return None
    size = os.fstat(file.fileno()).st_size
    following: dict[bytes, int] = {}  # stream -> number of its next page
    begun: set[bytes] = set()  # streams with samples in an earlier page
    ended: set[bytes] = set()
    at, junk = 0, False
    while (page := _page(file, at)) is not None:
        if not page:
            at, junk = _next_capture(file, at + 1, size), True
            continue
        if _checksum(page) != page[22:26]:
            return f"is damaged: the page at byte {at} does not match its checksum"
        stream, number = page[14:18], int.from_bytes(page[18:22], "little")
        if page[5] & BEGIN_FLAG:
            if begun:
                if not begun <= ended:
                    return f"is damaged: another recording begins at byte {at}, before the end of the one before"
                following, begun, ended = {}, set(), set()
            following[stream] = number
        # A recording of a running broadcast has the header's pages, then the pages from the moment it was joined.
        joined = stream in following and stream not in begun and not junk
        if number != following.get(stream, 0) and not joined:
            return f"is damaged: page {following.get(stream, 0)} is missing, page {number} is at byte {at}"
        following[stream] = number + 1
        if any(page[6:14]):
            begun.add(stream)
        if page[5] & END_FLAG:
            ended.add(stream)
        at, junk = at + len(page), False
    return None


def find_ogg_links(file: Any) -> list[tuple[int, int]]:
    """Return (start, end) in bytes of each of the recordings that follow each other in an Ogg ("chained").

    The position of the file does not change. What is damaged is left to `find_ogg_damage`.
    """
    size = os.fstat(file.fileno()).st_size
    whole = FilePart(file, 0, size)
    starts, begun, at = [0], False, 0
    while (page := _page(whole, at)) is not None:
        if not page:
            at = _next_capture(whole, at + 1, size)
            continue
        if page[5] & BEGIN_FLAG and begun:
            starts.append(at)
            begun = False
        begun = begun or any(page[6:14])
        at += len(page)
    return list(pairwise([*starts, size]))


def _page(file: BinaryIO | FilePart, at: int) -> bytes | None:
    """Return the page that begins at this offset; empty where none does; None at the end of the file."""
    file.seek(at)
    head = file.read(HEAD_BYTES + MAX_SEGMENTS)
    if not head:
        return None
    if head[:4] != CAPTURE or len(head) < HEAD_BYTES:
        return b""
    body = HEAD_BYTES + head[26]
    page = head + file.read(max(0, body + sum(head[HEAD_BYTES:body]) - len(head)))
    return page[: body + sum(head[HEAD_BYTES:body])]


def _next_capture(file: BinaryIO | FilePart, at: int, size: int) -> int:
    while at < size:
        file.seek(at)
        found = file.read(SEARCH_BYTES).find(CAPTURE)
        if found >= 0:
            return at + found
        at += SEARCH_BYTES - len(CAPTURE) + 1
    return size


def _checksum(page: bytes) -> bytes:
    without = page[:22] + bytes(4) + page[26:]
    found = zlib.crc32(without.translate(REVERSED_BITS), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{found:032b}"[::-1], 2).to_bytes(4, "little")
