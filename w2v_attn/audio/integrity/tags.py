"""Tags of MP3 files, which other formats have too: where they end at the beginning of a file, and begin at its end.

Source: the ID3v1, ID3v2 and APEv2 specifications.
"""

from typing import BinaryIO

from w2v_attn.audio.file_part import FilePart

ID3V1, ID3V1_BYTES = b"TAG", 128
APE, APE_BYTES, APE_HAS_HEADER = b"APETAGEX", 32, 1 << 31


def end_of_leading_tags(file: BinaryIO | FilePart, at: int = 0) -> int:
    """Return the offset behind the ID3v2 tags that begin at `at`."""
    while True:
        file.seek(at)
        head = file.read(10)
        if head is None or head[:3] != b"ID3":
            return at
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size


def start_of_trailing_tags(file: BinaryIO | FilePart, size: int) -> int:
    """Return the offset of the tags at the end of a file of this size; the size where there are none."""
    end = size
    file.seek(max(0, end - ID3V1_BYTES))
    if end > ID3V1_BYTES and (file.read(3) or b"") == ID3V1:
        end -= ID3V1_BYTES
    file.seek(max(0, end - APE_BYTES))
    footer = file.read(APE_BYTES) or b""
    if end > APE_BYTES and footer[:8] == APE:
        length, flags = int.from_bytes(footer[12:16], "little"), int.from_bytes(footer[20:24], "little")
        end -= length + (APE_BYTES if flags & APE_HAS_HEADER else 0)
    return max(0, end)
