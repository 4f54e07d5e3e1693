"""Files that libsndfile does not understand because of their ends, although the samples between them are whole.

- BW64 (ITU-R BS.2088) is an RF64 of another name.
- A WAV that was written to a pipe may state 0 bytes of samples.
- Of a W64 in the extensible format libsndfile ignores the sub-format, and takes floats for whole numbers.
- A FLAC may have an MP3's tags behind its last frame, and any format may have them in front: libsndfile skips those,
  but then refuses some of these files.
- Of an MP3 that does not state the number of its frames libsndfile estimates it, and ends there. Before the first frame
  it understands tags only.
"""

import os
from typing import Any

from w2v_attn.audio.file_part import FilePart
from w2v_attn.audio.integrity.mp3 import counted_mp3_header
from w2v_attn.audio.integrity.tags import end_of_leading_tags, start_of_trailing_tags
from w2v_attn.audio.integrity.truncation import W64_GUID_END, W64_START, find_w64_chunk
from w2v_attn.audio.integrity.wav import find_missing_data_size, is_extensible

BW64, RIFF = b"BW64", (b"RIFF", b"RIFX")
# The beginnings of an MP3 without junk: a tag, or a frame.
MP3_STARTS = (b"ID3", b"\xff")
# The beginnings of other formats that libsndfile recognises: if it refuses such a file, it is damaged.
OTHER_STARTS = (*RIFF, BW64, b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b".snd", b"NIST", b"riff")
# In place of a size: "to the end of the file".
UNKNOWN_SIZE = b"\xff\xff\xff\xff"
# Bytes of a W64's format chunk before and in its content, and the offset of the sub-format's code in the content.
CHUNK_HEADER, FORMAT_BYTES, SUBFORMAT = 24, 40, 24


def repaired(file: Any) -> FilePart | None:
    """Return an open file as libsndfile understands it; None where it needs no repair.

    The position of the file does not change.
    """
    size = os.fstat(file.fileno()).st_size
    start = os.pread(file.fileno(), len(W64_START), 0)
    whole: Any = FilePart(file, 0, size)
    if start[:4] == BW64:
        return FilePart(file, 4, size, prefix=b"RF64")
    if start[:4] in RIFF and (at := find_missing_data_size(whole)) is not None:
        return FilePart(file, at + 4, size, prefix=os.pread(file.fileno(), at, 0) + UNKNOWN_SIZE)
    if start == W64_START and (at := find_w64_chunk(whole, b"fmt " + W64_GUID_END)) is not None:
        at += CHUNK_HEADER
        form = os.pread(file.fileno(), FORMAT_BYTES, at)
        if is_extensible(form):
            code = form[SUBFORMAT : SUBFORMAT + 2]
            return FilePart(file, at + 2, size, prefix=os.pread(file.fileno(), at, 0) + code)
    begin = end_of_leading_tags(whole)
    is_tagged = begin > 0 and os.pread(file.fileno(), len(W64_START), begin).startswith(OTHER_STARTS)
    if is_tagged or start[:4] == b"fLaC":
        end = start_of_trailing_tags(whole, size)
        return FilePart(file, begin, end) if begin > 0 or end < size else None
    if start.startswith(MP3_STARTS) and (found := counted_mp3_header(whole)) is not None and found.header:
        return FilePart(file, found.start, size, prefix=found.header)
    return None


def without_junk(file: Any) -> FilePart | None:
    """Return an open MP3 from its first frame on, for one that libsndfile does not recognise; None for other files."""
    size = os.fstat(file.fileno()).st_size
    whole: Any = FilePart(file, 0, size)
    start = os.pread(file.fileno(), 16, 0)
    found = None if start.startswith(OTHER_STARTS) else counted_mp3_header(whole)
    return None if found is None else FilePart(file, found.start, size, prefix=found.header)
