"""The header of a FLAC, and whether its first frame agrees with it.

Source: RFC 9639, sections 8.2 (STREAMINFO) and 9.1 (frame header).
"""

from dataclasses import dataclass
from typing import BinaryIO

from w2v_attn.audio.file_part import FilePart
from w2v_attn.audio.integrity.tags import end_of_leading_tags

SYNC = 0xFFF8 >> 2
CODED_RATES = {4: 8000, 5: 16_000, 6: 22_050, 7: 24_000, 8: 32_000, 9: 44_100, 10: 48_000, 11: 96_000}
CODED_RATES |= {1: 88_200, 2: 176_400, 3: 192_000}
CODED_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
# Channel codes of two channels: left/side, right/side, mid/side.
CODED_STEREO = (8, 9, 10)
# Rate code -> bytes of the rate at the end of the frame's header, and their unit in Hz.
UNCODED_RATES = {12: (1, 1000), 13: (2, 1), 14: (2, 10)}


@dataclass(frozen=True)
class FlacFormat:
    """The sample format of a FLAC file or frame.

    Attributes:
        rate: Hz; None where a frame refers to the header of the file.
        channels: Number of channels.
        bits: Bits of a sample; None where a frame refers to the header of the file.
    """

    rate: int | None
    channels: int
    bits: int | None


@dataclass(frozen=True)
class FlacHeader:
    """The header of a FLAC file.

    Attributes:
        checksum: MD5 of all samples; None where it is not stated.
        samples: Number of samples of each channel; 0 where it is not stated.
        format: The sample format.
        frames_at: Byte offset of the first frame.
    """

    checksum: bytes | None
    samples: int
    format: FlacFormat
    frames_at: int


def read_flac_header(file: BinaryIO | FilePart) -> FlacHeader | None:
    """Return the header of an open file; None where it is not a native FLAC."""
    at = end_of_leading_tags(file)  # some writers put an MP3's tags in front
    file.seek(at)
    if file.read(4) != b"fLaC":
        return None
    file.seek(at + 8)
    # 16 + 16 + 24 + 24 bits of sizes, then 20 of the rate, 3 of channels, 5 of bits, 36 of samples, 128 of MD5.
    info = file.read(34)
    fields, md5 = int.from_bytes(info[10:18], "big"), info[18:34]
    format = FlacFormat(fields >> 44, (fields >> 41 & 7) + 1, (fields >> 36 & 31) + 1)
    return FlacHeader(md5 if any(md5) else None, fields & ((1 << 36) - 1), format, _end_of_metadata(file, at + 4))


def find_flac_contradiction(file: BinaryIO) -> str | None:
    """Return how the first frame of an open FLAC contradicts its header; None where it does not."""
    header = read_flac_header(file)
    if header is None:
        return None
    file.seek(header.frames_at)
    frame = _frame_format(file.read(16))
    if frame is None:
        return None  # the decoder reports it
    for name, unit in (("rate", "Hz"), ("channels", "channels"), ("bits", "bits")):
        stated, found = getattr(header.format, name), getattr(frame, name)
        if found is not None and found != stated:
            return f"its header states {stated} {unit}, its first frame {found}"
    return None


def _end_of_metadata(file: BinaryIO | FilePart, at: int) -> int:
    last = False
    while not last:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4:
            break
        last = bool(head[0] & 0x80)
        at += 4 + int.from_bytes(head[1:], "big")
    return at


def _frame_format(head: bytes) -> FlacFormat | None:
    if len(head) < 16 or int.from_bytes(head[:2], "big") >> 2 != SYNC:
        return None
    size_code, rate_code, channel_code, bits_code = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    channels = 2 if channel_code in CODED_STEREO else channel_code + 1
    rate = CODED_RATES.get(rate_code)
    if rate_code in UNCODED_RATES:
        number = 5 + max(0, 8 - (head[4] ^ 0xFF).bit_length() - 1)  # after the frame number, coded like UTF-8
        after = number + {6: 1, 7: 2}.get(size_code, 0)
        width, unit = UNCODED_RATES[rate_code]
        rate = int.from_bytes(head[after : after + width], "big") * unit
    return FlacFormat(rate, channels, CODED_BITS.get(bits_code))
