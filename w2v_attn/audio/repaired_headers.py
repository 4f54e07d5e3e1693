"""Headers that libsndfile does not understand, although the samples behind them are whole.

- BW64 (ITU-R BS.2088) is an RF64 of another name.
- A WAV that was written to a pipe may state 0 bytes of samples.
- Of a W64 in the extensible format libsndfile ignores the sub-format, and takes floats for whole numbers.
"""

import os
from typing import Any

from w2v_attn.audio.file_part import FilePart
from w2v_attn.audio.integrity.truncation import W64_GUID_END, W64_START, find_w64_chunk
from w2v_attn.audio.integrity.wav import find_missing_data_size, is_extensible

BW64 = b"BW64"
# In place of a size: "to the end of the file".
UNKNOWN_SIZE = b"\xff\xff\xff\xff"
# Bytes of a W64's format chunk before and in its content, and the offset of the sub-format's code in the content.
CHUNK_HEADER, FORMAT_BYTES, SUBFORMAT = 24, 40, 24


def repaired(file: Any) -> FilePart | None:
    """Return an open file with a header that libsndfile understands; None where it needs no repair.

    The position of the file does not change.
    """
    size = os.fstat(file.fileno()).st_size
    start = os.pread(file.fileno(), len(W64_START), 0)
    whole: Any = FilePart(file, 0, size)
    if start[:4] == BW64:
        return FilePart(file, 0, size, beginning=b"RF64")
    if start[:4] in (b"RIFF", b"RIFX") and (at := find_missing_data_size(whole)) is not None:
        return FilePart(file, 0, size, beginning=os.pread(file.fileno(), at, 0) + UNKNOWN_SIZE)
    if start == W64_START and (at := find_w64_chunk(whole, b"fmt " + W64_GUID_END)) is not None:
        form = os.pread(file.fileno(), FORMAT_BYTES, at + CHUNK_HEADER)
        if is_extensible(form):
            header = os.pread(file.fileno(), at + CHUNK_HEADER, 0)
            return FilePart(file, 0, size, beginning=header + form[SUBFORMAT : SUBFORMAT + 2])
    return None
