"""The columns of lists: which of them is what, by the names that people use or by what the user says."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, CorpusError

# Field -> names of its column: ours first, then those of other tools, the most usual first. Case, spaces, hyphens and
# underscores do not matter.
NAMES: dict[str, tuple[str, ...]] = {
    "path": tuple(
        "path audio_filepath audio file file_name wav filename filepath audio_path audio_file audio_filename wav_path "
        "wav_file wav_filename recording clip clip_path flac mp3 url audio_url".split()
    ),
    "id": ("id",),
    "text": tuple(
        "text sentence transcript transcription normalized_text words wrd normalised_text raw_transcription "
        "raw_text".split()
    ),
    "label": tuple(
        "label command class keyword intent emotion language category class_name class_label emo intent_class lang "
        "lang_id".split()
    ),
    "speaker": tuple("speaker speaker_id client_id spk_id spk speaker_name".split()),
    "split": ("split", "subset", "set", "partition"),
    "offset": tuple("offset start begin start_time begin_time onset".split()),
    "duration": ("duration", "dur"),
    "end": ("end", "end_time"),
    "channel": ("channel",),
    "stop": ("stop",),  # SpeechBrain's: a number of samples, as `start` is beside it
}
SPLITS = re.compile(
    r"(?:(train|training)|(valid|validation|val|dev|development)|(test|testing))(?![a-z])", re.IGNORECASE
)
# Beginnings of the names of a data set's splits and files. Others (Common Voice's "invalidated") are in no split.
SPLIT_PREFIXES = {"train": "train", "valid": "valid", "dev": "valid", "test": "test"}


class Columns:
    """Which column holds which field.

    Args:
        chosen: Field -> name of its column, or its number, from 1, in a list without a header; None: the field is not
            read. Other fields are found by their usual names. Several names for the label: it holds all of them, as
            values of a regression.
        prefix: The beginning of configuration keys in messages, such as `data.`.

    Raises:
        CorpusError: there is no such field.
    """

    def __init__(self, chosen: Mapping[str, Any] | None = None, prefix: str = ""):
        chosen = dict(chosen or {})
        self.values: tuple[str, ...] = ()
        if isinstance(names := chosen.get("label"), list | tuple):
            self.values, chosen["label"] = tuple(map(str, names)), None
        self.chosen = {str(field): None if name is None else str(name) for field, name in chosen.items()}
        self.prefix = prefix
        self._known: dict[tuple[str, ...], dict[str, str]] = {}
        self._rivals: dict[tuple[str, ...], dict[str, tuple[str, str]]] = {}
        if unknown := [field for field in self.chosen if field not in NAMES]:
            raise CorpusError(
                f"{prefix}columns: there is no field {', '.join(unknown)}; expected some of {', '.join(NAMES)}, each "
                "with the name of its column: {path: file, text: words}"
            )

    @property
    def named(self) -> list[str]:
        """The columns that the user names."""
        return [*(name for name in self.chosen.values() if name is not None), *self.values]

    def of(self, names: Sequence[str]) -> dict[str, str]:
        """Return field -> column for a list with columns of these names."""
        key = tuple(names)
        if key not in self._known:
            self._known[key], self._rivals[key] = self._resolve(key)
        return self._known[key]

    def rivals(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return field -> (column that is used, another one that might be meant), where names do not decide."""
        self.of(names)
        return self._rivals[tuple(names)]

    def check(self, names: Collection[str], source: object) -> None:
        """Check that a list with columns of these names has those that the user names.

        Raises:
            CorpusError: it does not.
        """
        if missing := [name for name in self.named if name not in names]:
            raise CorpusError(
                f"{source} has no column {', '.join(missing)}, which {self.prefix}columns names: its columns are "
                f"{', '.join(names) or 'none'}"
            )

    def by_number(self, names: Sequence[str]) -> bool:
        """Return whether a list whose first line holds these values has no header, because columns are numbers."""
        return any(name is not None and name.isdigit() and name not in names for name in self.chosen.values())

    def hint(self, **examples: str) -> str:
        """Return how to say which column is what."""
        listed = ", ".join(f"{field}: {name}" for field, name in examples.items())
        return f"'{self.prefix}columns={{{listed}}}'"

    def _resolve(self, names: tuple[str, ...]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
        found: dict[str, str] = {}
        rivals: dict[str, tuple[str, str]] = {}
        taken = set(self.chosen.values())
        # In annotations of sound events an onset and an offset are the beginning and the end.
        events = {"offset": ("onset",), "end": ("offset",)} if {"onset", "offset"} <= set(map(_plain, names)) else {}
        for field, known in NAMES.items():
            if field in self.chosen:
                if (name := self.chosen[field]) is not None and name in names:
                    found[field] = name
                continue
            usual = events.get(field, known)
            ranks = {_plain(name): rank for rank, name in enumerate(usual)}
            usable = [name for name in names if _plain(name) in ranks and name not in taken]
            if usable:
                usable.sort(key=lambda name, ranks=ranks, usual=usual: (ranks[_plain(name)], name not in usual))
                found[field] = usable[0]
                if len(usable) > 1 and _plain(usable[0]) != field:
                    rivals[field] = (usable[0], usable[1])
        return found, rivals


class ChannelNumber(int):
    """The number of a channel, from 0, in a format that defines it, such as lhotse's manifests."""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def fields_of(record: Mapping[str, object], columns: Columns) -> dict[str, Any]:
    """Return text, label, speaker, split and channel of a record, or None where it has none.

    Raises:
        CorpusError: the split has an unknown name.
    """
    found = columns.of(tuple(record))
    text, speaker = (as_text(record[found[f]]) if f in found else None for f in ("text", "speaker"))
    if columns.values:
        label = as_label({name: record.get(name) for name in columns.values})
    else:
        label = as_label(record[found["label"]]) if "label" in found else None
    return {
        "text": text,
        "label": label or None,
        "speaker": speaker or None,
        "split": split_of(record, found),
        "channel": channel_of(record, found, columns),
    }


def channel_of(record: Mapping[str, object], found: Mapping[str, str], columns: Columns) -> str | None:
    """Return the channel of a record: left, right or a number from 0; None where it has none.

    A column of that name may hold something else, such as the channel of a broadcaster, numbers from 1, or how many
    there are: a number is a channel only where the user names the column, or where it is a `ChannelNumber`.

    Raises:
        CorpusError: the user names the column, and its value is no channel.
    """
    stated = record[found["channel"]] if "channel" in found else None
    value = (as_text(stated) or "").strip()
    is_named = "channel" in columns.chosen
    if value.lower() in ("left", "right"):
        return value.lower()
    if (number := re.fullmatch(r"([0-9]+)(?:\.0*)?", value)) and (is_named or isinstance(stated, ChannelNumber)):
        return number[1]
    if value and is_named:
        raise CorpusError(f"the channel is {value!r}, expected left, right or a number from 0")
    return None


def split_of(record: Mapping[str, object], found: Mapping[str, str]) -> str | None:
    """Return the split of a record as train, valid or test; None where it has none. found: field -> column.

    A column named subset, set or partition may hold something else, and then states no split.

    Raises:
        CorpusError: the column is named split, and has another value.
    """
    value = as_text(record[found["split"]]) if "split" in found else None
    if not value:
        return None
    if match := SPLITS.match(value):
        return ("train", "valid", "test")[(match.lastindex or 1) - 1]
    if _plain(found["split"]) in NAMES["split"][1:]:
        return None
    raise CorpusError(f"the split is {value!r}, expected train, valid or test")


def seconds_of(record: Mapping[str, object], column: str | None) -> float | None:
    """Return a time of a record in seconds; None where it has none.

    Raises:
        CorpusError: it is not a number of seconds.
    """
    value = as_text(record.get(column)) if column is not None else None
    if not value:
        return None
    try:
        seconds = float(value.replace(",", ".") if value.count(",") == 1 and "." not in value else value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise CorpusError(f"{column} is {value!r}, expected seconds")
    return seconds


def as_text(value: object) -> str | None:
    """Return a value of a list as text; None where there is none. The words of a list are joined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def as_label(value: object) -> str | None:
    """Return a label as text; lists of labels and objects with values become JSON."""
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return as_text(value)


def looks_like_audio(value: str) -> bool:
    """Return whether a value ends like the name of an audio file."""
    return any(value.strip().lower().endswith(extension) for extension in AUDIO_EXTENSIONS)
