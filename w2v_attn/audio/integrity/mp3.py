"""Bytes of an MP3 that belong to no frame, and whether it has as many frames as it states.

An MP3 has no checksum: after damage, a decoder silently searches for the next frame. Damage shows in the chain of
frames: each states its length, and the next one begins where it ends.

Source: ISO 11172-3, section 2.4.2; ISO 13818-3; the header frame that Xing and LAME write.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from w2v_attn.audio.file_part import FilePart
from w2v_attn.audio.integrity.tags import end_of_leading_tags

# kbit/s by code: in MPEG 1 of layers 1 to 3, in MPEG 2 and 2.5 of layer 1 and of layers 2 and 3.
_V1 = (
    (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_V2_1 = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_V2_23 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_V2 = (_V2_1, _V2_23, _V2_23)
# MPEG version -> sample rates by code, in Hz.
MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
# Offset of Xing's header in its frame, in bytes, by (MPEG 1, mono).
XING_OFFSETS = {(True, False): 36, (True, True): 21, (False, False): 21, (False, True): 13}
# Offset of the header of Fraunhofer's encoder (VBRI) in its frame, and of its number of frames in it, in bytes.
VBRI_OFFSET, VBRI_FRAMES = 36, 14
# Flag in Xing's header -> the size of a field: frames, bytes, a table, the quality. LAME's extension follows; in it at
# this offset, of 12 bits each: the samples to trim at the start and at the end.
XING_FIELDS = {1: 4, 2: 4, 4: 100, 8: 4}
LAME_TRIM = 21
# A decoder may omit more than the header states: its own delay and a frame of padding; and this share of the samples.
SLACK_SAMPLES, SLACK = 1152 + 529, 0.002
# Good files may have these tags, and zeros, after the last frame.
TRAILING_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
CHUNK = 1 << 16
# Frames that must follow each other in a file that does not begin like an MP3.
MIN_CHAIN = 4
# Bytes of a frame in which decoders look for Xing's header.
MIN_HEADER_BYTES = 192
# Frames whose samples a good decoder may omit: the header frame, the delays of encoder and decoder, the final padding.
MAX_TRIMMED_FRAMES = 5


class CountedHeader(NamedTuple):
    """Where the frames of an MP3 begin, and a frame without sound that states their number; empty if there is one."""

    header: bytes
    start: int


def counted_mp3_header(file: BinaryIO | FilePart) -> CountedHeader | None:
    """Return where the frames of an open MP3 begin, and a header with their number if it does not have Xing's.

    None where the file is no MP3 of layer III, or its frames do not state their length.
    """
    content = _Content(file)
    first = _next_frame(content, end_of_leading_tags(file), None)
    if first is None:
        return None
    head = content[first : first + 4]
    form, stated = _form(head), _stated_count(content, first)
    if form is None or form[1] != 3 or not _is_chain(content, first, form):
        return None
    if stated is not None and not stated.is_vbri:
        return CountedHeader(b"", first)
    if stated is not None:
        first += _length(head[1:3])
    frames = sum(1 for _, length in _chain(content, first, form) if length)
    coded = next((code for code in range(1, 15) if _length(_with_rate(head, code)[1:3]) >= MIN_HEADER_BYTES), None)
    if coded is None or frames == 0:
        return None
    frame = _with_rate(head, coded)
    xing = XING_OFFSETS[head[1] >> 3 & 3 == 3, head[3] >> 6 == 3]
    header = frame + bytes(xing - 4) + b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return CountedHeader(header.ljust(_length(frame[1:3]), b"\0"), first)


def missing_mp3_samples(file: BinaryIO, samples: int) -> str | None:
    """Return that an open MP3 has fewer samples than a header in its first frame states; None where it has enough.

    Xing's header and LAME's extension of it state the number of frames and the samples to trim, VBRI the number of
    frames. A file without such a header states nothing: what decoders call its length is an estimate.

    Args:
        file: The file.
        samples: Number of decoded samples of each channel.
    """
    content = _Content(file)
    first = _next_frame(content, end_of_leading_tags(content.file), None)
    stated = None if first is None else _stated_count(content, first)
    if first is None or stated is None:
        return None
    form = _form(content[first : first + 4])
    expected = stated.frames * _samples(form) - stated.trimmed
    if samples >= expected - max(SLACK_SAMPLES, SLACK * expected):
        return None
    if sum(length > 0 for _, length in _chain(content, first, form)) > stated.frames:
        return None  # with the header all are there: the decoder left some out, which `mp3_warnings` says
    return f"its header states {expected} samples, the file holds {samples}"


def mp3_warnings(file: BinaryIO, samples: int) -> list[str]:
    """Return warnings about the frames of an open MP3. samples: number of decoded samples of each channel."""
    content = _Content(file)
    size, start = content.size, end_of_leading_tags(content.file)
    first = _next_frame(content, start, None)
    if first is None:
        return []  # frames of free length, or a format that only the decoder recognises
    # Junk before the first frame is harmless, unless that frame needs bytes of frames before it: they are damaged then.
    frames, lost = 0, first - start if _needs_earlier_frames(content, first) else 0
    form, stated = _form(content[first : first + 4]), _stated_count(content, first)
    cut = 0
    for at, length in _chain(content, first, form):
        if length > 0:
            frames += 1
            cut = max(0, at + length - size)
        else:
            lost -= length
    warnings = [f"bytes between its frames that are no sound ({lost})"] if lost else []
    if cut:
        warnings.append(f"cut short in its last frame ({cut} bytes are missing)")
    if stated is not None and frames - 1 > stated.frames:  # the header frame has no sound
        warnings.append(f"more frames than its header counts ({frames - 1}, not {stated.frames})")
    missing = frames * _samples(form) - samples
    if missing > MAX_TRIMMED_FRAMES * _samples(form):
        warnings.append(f"fewer samples than its frames have ({missing} of {frames * _samples(form)} are missing)")
    return warnings


class _Content:
    """Bytes of a file. They are not mapped into memory: truncation while they are read would crash the process."""

    def __init__(self, file: BinaryIO | FilePart):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self._window, self._window_at = b"", 0

    def __getitem__(self, part: slice) -> bytes:
        start, stop = part.start - self._window_at, part.stop - self._window_at
        if start < 0 or stop > len(self._window):
            self.file.seek(part.start)
            self._window, self._window_at = self.file.read(max(CHUNK, part.stop - part.start)) or b"", part.start
            start, stop = 0, part.stop - part.start
        return self._window[start:stop]

    def find(self, byte: bytes, at: int) -> int:
        """Return the first position of a byte from `at` on, or -1."""
        while content := self[at : at + CHUNK]:
            if (found := content.find(byte)) >= 0:
                return at + found
            at += CHUNK
        return -1


def _chain(content: _Content, at: int, form: tuple[int, int, int] | None) -> Iterator[tuple[int, int]]:
    """Yield (offset, length in bytes) of each frame from a first one on; of bytes that are no frame the length < 0.

    Tags are left out, and so are zeros.
    """
    while at < content.size:
        length = _length(content[at + 1 : at + 3]) if _form(content[at : at + 4]) == form else 0
        if length > 0:
            yield at, length
            at += length
            continue
        end = end_of_leading_tags(content.file, at)
        if end == at:
            if content[at : at + 16].startswith(TRAILING_TAGS):
                return
            following = _next_frame(content, at + 1, form)
            end = content.size if following is None else following
            if not _only_zeros(content, at, end):
                yield at, at - end
        at = end


def _is_chain(content: _Content, at: int, form: tuple[int, int, int]) -> bool:
    """Return whether several frames follow each other, or all of the file does, so that no noise looks like them."""
    for _ in range(MIN_CHAIN):
        if at >= content.size:
            return True
        length = _length(content[at + 1 : at + 3]) if _form(content[at : at + 4]) == form else 0
        if length == 0:
            return content[at : at + 16].startswith((*TRAILING_TAGS, b"ID3", bytes(16)))
        at += length
    return True


def _with_rate(head: bytes, code: int) -> bytes:
    """Return the head of a frame with another bit rate, without a checksum and padding."""
    return bytes([head[0], head[1] | 1, code << 4 | head[2] & 0x0D, head[3]])


def _next_frame(content: _Content, at: int, form: tuple[int, int, int] | None) -> int | None:
    """Return where the next frame of this form begins that is followed by another one or by the end of the file."""
    while (at := content.find(b"\xff", at)) >= 0:
        found = _form(content[at : at + 4])
        if found is not None and form in (None, found):
            end = at + _length(content[at + 1 : at + 3])
            if end > at and (end >= content.size or _form(content[end : end + 4]) == found):
                return at
        at += 1
    return None


@lru_cache(maxsize=4096)
def _form(head: bytes) -> tuple[int, int, int] | None:
    """Return (MPEG version, layer, rate), which do not change within a file; None where this is no frame's head."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3
    if version == 1 or layer == 4 or rate == 3 or head[2] >> 4 == 15:
        return None
    return version, layer, MPEG_RATES[version][rate]


def _samples(form: tuple[int, int, int] | None) -> int:
    """Return the number of samples of a frame."""
    assert form is not None
    version, layer, _ = form
    return 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152


@lru_cache(maxsize=4096)
def _length(head: bytes) -> int:
    """Return the number of bytes of a frame from its second and third byte; 0 where it does not state it."""
    version, layer, code = head[0] >> 3 & 3, 4 - (head[0] >> 1 & 3), head[1] >> 4
    if code == 0:
        return 0
    bits, rate = (_V1 if version == 3 else _V2)[layer - 1][code - 1] * 1000, MPEG_RATES[version][head[1] >> 2 & 3]
    padding = head[1] >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // rate + padding


class _StatedCount(NamedTuple):
    """What a header states: the number of frames with sound, and how many of their samples to trim.

    is_vbri: whether it is that of Fraunhofer's encoder.
    """

    frames: int
    trimmed: int
    is_vbri: bool = False


def _stated_count(content: _Content, at: int) -> _StatedCount | None:
    """Return what Xing's header or VBRI in the first frame states; None where there is none."""
    head = content[at : at + 4]
    vbri = content[at + VBRI_OFFSET : at + VBRI_OFFSET + VBRI_FRAMES + 4]
    if vbri[:4] == b"VBRI" and len(vbri) == VBRI_FRAMES + 4:
        return _StatedCount(int.from_bytes(vbri[VBRI_FRAMES:], "big"), 0, is_vbri=True)
    offset = XING_OFFSETS[head[1] >> 3 & 3 == 3, head[3] >> 6 == 3]
    for xing in (at + offset, at + offset + 2):  # a checksum may be in front
        found = content[xing : xing + 12]  # a name, flags, the number of frames
        if found[:4] in (b"Xing", b"Info") and len(found) == 12 and found[7] & 1:
            lame = xing + 8 + sum(size for bit, size in XING_FIELDS.items() if found[7] & bit)
            return _StatedCount(int.from_bytes(found[8:], "big"), _trimmed(content[lame : lame + LAME_TRIM + 3]))
    return None


def _trimmed(lame: bytes) -> int:
    """Return the samples to trim at the start and at the end, by LAME's extension of Xing's header."""
    trim = int.from_bytes(lame[LAME_TRIM:], "big") if lame[:4] in (b"LAME", b"Lavf", b"Lavc") else 0
    return (trim >> 12) + (trim & 0xFFF)


def _needs_earlier_frames(content: _Content, at: int) -> bool:
    """Return whether a frame of layer III begins with bytes that are stored in frames before it."""
    head = content[at : at + 8]
    if len(head) < 8 or head[1] >> 1 & 3 != 1:
        return False
    side = int.from_bytes(head[4:6] if head[1] & 1 else head[6:8], "big")  # after a checksum, if there is one
    return side >> (7 if head[1] >> 3 & 3 == 3 else 8) > 0


def _only_zeros(content: _Content, start: int, end: int) -> bool:
    return all(not any(content[at : min(at + CHUNK, end)]) for at in range(start, end, CHUNK))
