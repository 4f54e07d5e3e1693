"""What in an MP3 is no frame of sound, and whether it has as many frames as it says.

It has no checksum: a decoder that loses its way looks for the next frame, and says nothing. Where that was so, the
chain of frames is broken: each says how long it is, and the next one begins at its end.

Source: ISO 11172-3, section 2.4.2; ISO 13818-3; the frame of numbers that Xing and LAME put first.
"""

import os
from functools import lru_cache
from typing import BinaryIO

# kbit/s by their code, of layers 1 to 3; in MPEG 2 and 2.5 of layer 1, and of layers 2 and 3.
_V1 = (
    (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_V2_1 = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_V2_23 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_V2 = (_V2_1, _V2_23, _V2_23)
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
# Bytes from the start of a frame to Xing's numbers, by (MPEG 1, mono).
NUMBERS_AT = {(True, False): 36, (True, True): 21, (False, False): 21, (False, True): 13}
# What stands behind the last frame in good files: tags, and zeros.
TAGS_AT_THE_END = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
CHUNK = 1 << 16
# Frames whose samples a good decoder leaves out: that of the numbers, the delay of both coders, what fills the last.
MOST_TRIMMED = 5


def oddities(file: BinaryIO, samples: int) -> list[str]:
    """What is odd about the frames of an open file, in words. samples: of each channel, that were decoded."""
    content = _Content(file)
    size, start = content.size, _behind_tags(content, 0)
    at = first = _next_frame(content, start, None)
    if at is None or first is None:
        return []  # of free length, or something that only its decoder knows
    frames, lost = 0, 0 if _only_zeros(content, start, first) else first - start
    form, stated = _form(content[first : first + 4]), _stated_frames(content, first)
    cut = 0
    while at < size:
        length = _length(content[at + 1 : at + 3]) if _form(content[at : at + 4]) == form else 0
        if length > 0:
            frames += 1
            cut = max(0, at + length - size)
            at += length
            continue
        behind = _behind_tags(content, at)
        if behind == at:
            if content[at : at + 16].startswith(TAGS_AT_THE_END):
                break
            following = _next_frame(content, at + 1, form)
            behind = size if following is None else following
            lost += 0 if _only_zeros(content, at, behind) else behind - at
        at = behind
    odd = [f"bytes between its frames that are no sound ({lost})"] if lost else []
    if cut:
        odd.append(f"cut short in its last frame ({cut} bytes are missing)")
    if stated is not None and frames - 1 > stated:  # its own frame is none of sound
        odd.append(f"more frames than its header counts ({frames - 1}, not {stated})")
    lacking = frames * _samples(form) - samples
    if lacking > MOST_TRIMMED * _samples(form):
        odd.append(f"fewer samples than its frames have ({lacking} of {frames * _samples(form)} are missing)")
    return odd


class _Content:
    """Bytes of a file. Not mapped into memory: what is cut meanwhile would be a crash."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def __getitem__(self, part: slice) -> bytes:
        self._file.seek(part.start)
        return self._file.read(part.stop - part.start)

    def find(self, byte: bytes, at: int) -> int:
        """Where a byte is from there on, or -1."""
        while content := self[at : at + CHUNK]:
            if (found := content.find(byte)) >= 0:
                return at + found
            at += CHUNK
        return -1


def _behind_tags(content: _Content, at: int) -> int:
    while content[at : at + 3] == b"ID3":
        size = 0
        for byte in content[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size
    return at


def _next_frame(content: _Content, at: int, form: tuple[int, int, int] | None) -> int | None:
    """Where the next frame begins: of this form, and with another one behind it or the end."""
    while (at := content.find(b"\xff", at)) >= 0:
        found = _form(content[at : at + 4])
        if found is not None and form in (None, found):
            behind = at + _length(content[at + 1 : at + 3])
            if behind > at and (behind >= content.size or _form(content[behind : behind + 4]) == found):
                return at
        at += 1
    return None


@lru_cache(maxsize=4096)
def _form(head: bytes) -> tuple[int, int, int] | None:
    """(MPEG version, layer, rate), which do not change within a file; None: no frame begins with this."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3
    if version == 1 or layer == 4 or rate == 3 or head[2] >> 4 == 15:
        return None
    return version, layer, RATES[version][rate]


def _samples(form: tuple[int, int, int] | None) -> int:
    """Samples of a frame."""
    assert form is not None
    version, layer, _ = form
    return 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152


@lru_cache(maxsize=4096)
def _length(head: bytes) -> int:
    """Bytes of a frame, by the second and the third of its own; 0: it does not say."""
    version, layer, code = head[0] >> 3 & 3, 4 - (head[0] >> 1 & 3), head[1] >> 4
    if code == 0:
        return 0
    bits, rate = (_V1 if version == 3 else _V2)[layer - 1][code - 1] * 1000, RATES[version][head[1] >> 2 & 3]
    padding = head[1] >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // rate + padding


def _stated_frames(content: _Content, at: int) -> int | None:
    """How many frames of sound there are, if the first frame says so."""
    head = content[at : at + 4]
    numbers = at + NUMBERS_AT[head[1] >> 3 & 3 == 3, head[3] >> 6 == 3]
    found = content[numbers : numbers + 12]  # a name, what follows it, the frames
    if found[:4] not in (b"Xing", b"Info") or len(found) < 12 or not found[7] & 1:
        return None
    return int.from_bytes(found[8:], "big")


def _only_zeros(content: _Content, start: int, end: int) -> bool:
    return all(not any(content[at : min(at + CHUNK, end)]) for at in range(start, end, CHUNK))
