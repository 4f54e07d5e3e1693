"""What a FLAC's header states, and whether its first frame agrees.

Source: RFC 9639, sections 8.2 (STREAMINFO) and 9.1 (frame header).
"""

from dataclasses import dataclass
from typing import BinaryIO

SYNC = 0xFFF8 >> 2
CODED_RATES = {4: 8000, 5: 16_000, 6: 22_050, 7: 24_000, 8: 32_000, 9: 44_100, 10: 48_000, 11: 96_000}
CODED_RATES |= {1: 88_200, 2: 176_400, 3: 192_000}
CODED_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
# Two channels, as left and right, middle and side, …
CODED_STEREO = (8, 9, 10)
UNIT_OF_STATED = {12: (1, 1000), 13: (2, 1), 14: (2, 10)}  # bytes at the end of the frame's header, and Hz


@dataclass(frozen=True)
class Form:
    """rate: Hz; None where a frame leaves it, or the bits, to the header of the file."""

    rate: int | None
    channels: int
    bits: int | None


@dataclass(frozen=True)
class Stated:
    """checksum: the MD5 of all samples; None where it is not stated. samples: 0 where they are not stated."""

    checksum: bytes | None
    samples: int
    form: Form
    frames_at: int


def stated(file: BinaryIO) -> Stated | None:
    """What the header of an open file states; None: it is no FLAC, or one inside of another container."""
    file.seek(0)
    start = file.read(10)
    at = 0
    if start[:3] == b"ID3":  # some writers put MP3's tag in front
        size = 0
        for byte in start[6:10]:
            size = size << 7 | byte & 0x7F
        at = 10 + size
        file.seek(at)
        start = file.read(4)
    if start[:4] != b"fLaC":
        return None
    file.seek(at + 8)
    # 16 + 16 + 24 + 24 bits of sizes, then 20 of the rate, 3 of channels, 5 of bits, 36 of samples, 128 of MD5.
    info = file.read(34)
    fields, md5 = int.from_bytes(info[10:18], "big"), info[18:34]
    form = Form(fields >> 44, (fields >> 41 & 7) + 1, (fields >> 36 & 31) + 1)
    return Stated(md5 if any(md5) else None, fields & ((1 << 36) - 1), form, _end_of_metadata(file, at + 4))


def contradiction(file: BinaryIO) -> str | None:
    """What the first frame of an open file says against its header, in words; None: nothing."""
    header = stated(file)
    if header is None:
        return None
    file.seek(header.frames_at)
    frame = _frame_form(file.read(16))
    if frame is None:
        return None  # its decoder will say so
    for name, unit in (("rate", "Hz"), ("channels", "channels"), ("bits", "bits")):
        ours, theirs = getattr(header.form, name), getattr(frame, name)
        if theirs is not None and theirs != ours:
            return f"its header states {ours} {unit}, its first frame {theirs}"
    return None


def _end_of_metadata(file: BinaryIO, at: int) -> int:
    last = False
    while not last:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4:
            break
        last = bool(head[0] & 0x80)
        at += 4 + int.from_bytes(head[1:], "big")
    return at


def _frame_form(head: bytes) -> Form | None:
    if len(head) < 16 or int.from_bytes(head[:2], "big") >> 2 != SYNC:
        return None
    size_code, rate_code, channel_code, bits_code = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    channels = 2 if channel_code in CODED_STEREO else channel_code + 1
    rate = CODED_RATES.get(rate_code)
    if rate_code in UNIT_OF_STATED:
        number = 5 + max(0, 8 - (head[4] ^ 0xFF).bit_length() - 1)  # behind the frame's number, coded as UTF-8 is
        after = number + {6: 1, 7: 2}.get(size_code, 0)
        width, unit = UNIT_OF_STATED[rate_code]
        rate = int.from_bytes(head[after : after + width], "big") * unit
    return Form(rate, channels, CODED_BITS.get(bits_code))
