"""The formats of data sets, in the order in which they are tried. A new one is a file here and a line below."""

from pathlib import Path

from w2v_attn.corpus.list_formats import (
    audio_files,
    delimited,
    fairseq,
    json_lines,
    librispeech,
    path_list,
    saved_dataset,
    shards,
    speech_commands,
)
from w2v_attn.corpus.list_formats.list_format import ListFormat

FORMATS: tuple[ListFormat, ...] = (
    # folders
    saved_dataset.FORMAT,
    speech_commands.FORMAT,
    librispeech.FORMAT,
    audio_files.FOLDER,
    # files
    fairseq.FORMAT,
    delimited.FORMAT,
    json_lines.FORMAT,
    path_list.FORMAT,
    shards.TAR,
    shards.PARQUET,
    audio_files.FILE,
)


def format_of(path: Path) -> ListFormat:
    """Return the format of a file or folder that exists; a file of no other format is a recording."""
    return next(form for form in FORMATS if form.recognises(path))
