"""The formats of data sets, in the order in which they are tried. A new one is a file here and a line below."""

from pathlib import Path

from w2v_attn.corpus.list_formats import (
    audio_files,
    delimited,
    fairseq,
    json_lists,
    kaldi,
    lhotse,
    librispeech,
    ljspeech,
    metadata_files,
    path_list,
    saved_dataset,
    shards,
    speech_commands,
    workbooks,
)
from w2v_attn.corpus.list_formats.list_format import ListFormat

FORMATS: tuple[ListFormat, ...] = (
    # folders, some of which can also be named by their list
    saved_dataset.FORMAT,
    kaldi.FORMAT,
    speech_commands.FORMAT,
    librispeech.FORMAT,
    ljspeech.FORMAT,
    metadata_files.FORMAT,
    audio_files.FOLDER,
    # files
    workbooks.FORMAT,
    fairseq.FORMAT,
    delimited.FORMAT,
    path_list.FORMAT,
    lhotse.FORMAT,
    json_lists.FORMAT,
    shards.TAR,
    shards.PARQUET,
    audio_files.FILE,
)


# Ends of the names of files that list recordings or hold several.
LIST_EXTENSIONS = (*delimited.TABLES, *path_list.EXTENSIONS, *json_lists.EXTENSIONS, ".scp", ".parquet", ".tar")


def is_list_name(name: str) -> bool:
    """Return whether a file of this name lists recordings or holds several; its content is not looked at."""
    return name.lower().endswith(LIST_EXTENSIONS)


def format_of(path: Path) -> ListFormat:
    """Return the format of a file or folder that exists; a file of no other format is a recording."""
    return next(form for form in FORMATS if form.recognises(path))
