"""Whether all pages of an Ogg file are there and whole.

Decoders pass over a page whose checksum is wrong, or that is not there, and go on after it: what is heard then lacks up
to some seconds, without a word. So pages are counted and their checksums computed here as well.

Source: RFC 3533, section 6.
"""

import os
import zlib
from typing import BinaryIO

CAPTURE = b"OggS"
HEAD, MOST_SEGMENTS, BEGINS = 27, 255, 0x02
SEARCHED = 1 << 16
# The checksum takes bits of a byte from the highest on, zlib's from the lowest, with the same polynomial.
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def fault(file: BinaryIO) -> str | None:
    """What is wrong with the pages of an open file, as the end of a sentence; None: nothing, or it is no Ogg.

    What stands between pages is passed over, as long as no page is missing.
    """
    file.seek(0)
    if file.read(4) != CAPTURE:
        return None
    size = os.fstat(file.fileno()).st_size
    following: dict[bytes, int] = {}  # stream -> number of its next page
    begun: set[bytes] = set()  # those with samples in a page before
    at, junk = 0, False
    while (page := _page(file, at)) is not None:
        if not page:
            at, junk = _next_capture(file, at + 1, size), True
            continue
        if _checksum(page) != page[22:26]:
            return f"is damaged: the page at byte {at} does not have its checksum"
        stream, number = page[14:18], int.from_bytes(page[18:22], "little")
        if page[5] & BEGINS:
            if begun:
                return (
                    "holds several recordings one behind the other, and decoders read the first: make one file of each"
                )
            following[stream] = number
        # What was recorded from a running broadcast has the pages of its header, and then those from there on.
        joined = stream in following and stream not in begun and not junk
        if number != following.get(stream, 0) and not joined:
            return f"is damaged: page {following.get(stream, 0)} is missing, page {number} is at byte {at}"
        following[stream] = number + 1
        if any(page[6:14]):
            begun.add(stream)
        at, junk = at + len(page), False
    return None


def _page(file: BinaryIO, at: int) -> bytes | None:
    """The page that begins there; nothing where none does; None: the file has ended."""
    file.seek(at)
    head = file.read(HEAD + MOST_SEGMENTS)
    if not head:
        return None
    if head[:4] != CAPTURE or len(head) < HEAD:
        return b""
    body = HEAD + head[26]
    page = head + file.read(max(0, body + sum(head[HEAD:body]) - len(head)))
    return page[: body + sum(head[HEAD:body])]


def _next_capture(file: BinaryIO, at: int, size: int) -> int:
    while at < size:
        file.seek(at)
        found = file.read(SEARCHED).find(CAPTURE)
        if found >= 0:
            return at + found
        at += SEARCHED - len(CAPTURE) + 1
    return size


def _checksum(page: bytes) -> bytes:
    without = page[:22] + bytes(4) + page[26:]
    found = zlib.crc32(without.translate(REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{found:032b}"[::-1], 2).to_bytes(4, "little")
