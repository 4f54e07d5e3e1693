"""The columns of lists: the names that each of them may have, and what they say about a recording."""

import math
from collections.abc import Mapping
from typing import Any

from w2v_attn.corpus.rows import CorpusError

# Accepted names of each column: ours first, then NeMo's, Common Voice's and other common ones.
PATH_COLUMNS = ("path", "audio_filepath", "audio", "file", "file_name", "wav")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text")
LABEL_COLUMNS = ("label", "command", "class", "keyword", "intent", "emotion", "language")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
# Beginnings of the names of a data set's splits and files. Others (Common Voice's "invalidated") are in no split.
SPLIT_PREFIXES = {"train": "train", "valid": "valid", "dev": "valid", "test": "test"}


def fields_of(record: Mapping[str, object], where: str) -> dict[str, Any]:
    """Return text, label, speaker and split of a record: strings, or None where it has none.

    Args:
        record: Column names and values.
        where: The beginning of error messages.

    Raises:
        CorpusError: the split has an unknown name.
    """
    return {
        "text": _field(record, TEXT_COLUMNS),
        "label": _field(record, LABEL_COLUMNS) or None,
        "speaker": _field(record, SPEAKER_COLUMNS) or None,
        "split": split_of(record, where),
    }


def split_of(record: Mapping[str, object], where: str) -> str | None:
    """Return the split of a record as train, valid or test; None where it has none.

    Raises:
        CorpusError: the split has an unknown name.
    """
    value = record.get("split")
    if value in (None, ""):
        return None
    if str(value).lower() not in SPLITS:
        raise CorpusError(f"{where}: the split is {value!r}, expected train, valid or test")
    return SPLITS[str(value).lower()]


def seconds_of(record: Mapping[str, object], column: str, where: str) -> float | None:
    """Return a time of a record in seconds; None where it has none.

    Raises:
        CorpusError: it is not a number of seconds.
    """
    value = record.get(column)
    if value in (None, ""):
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise CorpusError(f"{where}: {column} is {value!r}, expected seconds")
    return seconds


def _field(record: Mapping[str, object], columns: tuple[str, ...]) -> str | None:
    value = next((record[name] for name in columns if name in record), None)
    return None if value is None else str(value)
