"""Records of lists, one for each recording, become rows: where the recording is, which part of it, and its id."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import soundfile

from w2v_attn.corpus.columns import Columns, as_text, fields_of, looks_like_audio, seconds_of
from w2v_attn.corpus.list_formats.list_format import ListOptions
from w2v_attn.corpus.remote_files import RemoteFile, is_url, unfetchable_reason
from w2v_attn.corpus.rows import Corpus, CorpusError, Row, Unusable, channel_id

logger = logging.getLogger(__name__)

# {data_root}/a.wav, $data_root/a.wav: SpeechBrain's recipes put a folder there.
_PLACEHOLDER = re.compile(r"(?:\{\w+\}|\$\w+|\$\{\w+\})[/\\]+")
# Seconds between the stated and the counted length of a recording that is listed as a whole.
_WHOLE_SLACK = 0.1


@dataclass(frozen=True, slots=True)
class Record:
    """What a list says about one recording.

    Attributes:
        where: The place in the list, such as `line 3`.
        values: Column -> value.
        line: The line, from 1; None in lists without lines.
        reason: Why the record cannot be used, where it cannot be read.
    """

    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    line: int | None = None
    reason: str | None = None


@dataclass(slots=True)
class _Draft:
    """A record on its way to a row; `name` is what its id is made of."""

    record: Record
    path: Path
    content: RemoteFile | None = None
    name: str = ""
    given: str | None = None
    offset: float = 0.0
    duration: float | None = None
    is_part: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


def corpus_of(
    records: Iterable[Record],
    source: Path,
    options: ListOptions,
    *,
    folder: Path | None = None,
    ids_under: Path | None = None,
) -> Corpus:
    """Return the rows of a list, in its order. A record that cannot be used becomes a row with `Unusable` content.

    Args:
        records: The records of the list.
        source: The list.
        options: What the user says about it.
        folder: The folder of its paths, where the user names none; None: the list's own.
        ids_under: The folder that ids are relative to; None: that of the paths.

    Raises:
        CorpusError: no record can be used, a named column does not exist, or an id is given twice; the text names the
            line.
    """
    folder = options.root or folder or source.parent
    drafts: list[_Draft] = []
    seen = _SeenColumns(options.columns)
    for record in records:
        seen.add(record)
        try:
            drafts.append(_draft(record, folder, options))
        except CorpusError as error:
            path, own_id = _named_path(record, source, options), _own_id(record, options)
            drafts.append(_Draft(record, path, given=own_id, reason=str(error)))
    seen.check(source)
    _check_subsets(drafts, options.columns)
    usable = [draft for draft in drafts if draft.reason is None]
    if not usable:
        if not drafts:
            raise CorpusError(f"{source} lists no recordings")
        more = f" (and so on: none of its {len(drafts)} rows can be used)" if len(drafts) > 1 else ""
        raise CorpusError(f"{source}, {drafts[0].record.where}: {drafts[0].reason}{more}")
    ids = _ids(usable, source, ids_under or folder)
    remaining, taken = iter(ids), set(ids)
    return Corpus(
        tuple(
            _row(draft, next(remaining)) if draft.reason is None else _unusable_row(source, draft, taken)
            for draft in drafts
        )
    )


def _unusable_row(source: Path, draft: _Draft, taken: set[str]) -> Row:
    """Return the row of a record that cannot be used. taken: the ids of the other rows, to which its own is added."""
    record, id = draft.record, draft.given
    if id is None or id in taken:
        place = record.line if record.line is not None else record.where
        id = _numbered(f"{source.name}:{place}".replace("/", "_"), taken)
    taken.add(id)
    return Row(id, draft.path, content=Unusable(f"{record.where}: {draft.reason}"), line=record.line)


def _row(draft: _Draft, id: str) -> Row:
    content, line = draft.content, draft.record.line
    return Row(id, draft.path, draft.offset, draft.duration, **draft.fields, content=content, line=line)


class _SeenColumns:
    """The columns that a list has: those that the user names must exist, and those that compete are named."""

    def __init__(self, columns: Columns):
        self._columns = columns
        self._names: dict[str, None] = {}
        self._rivals: dict[str, tuple[str, str, str]] = {}

    def add(self, record: Record) -> None:
        values = record.values
        self._names.update(dict.fromkeys(values))
        for name, (used, other) in self._columns.rivals(tuple(values)).items():
            if name not in self._rivals and values[used] != values[other] and values[other] not in (None, ""):
                self._rivals[name] = (used, other, record.where)

    def check(self, source: Path) -> None:
        """Log what is ambiguous. Raises CorpusError if a named column does not exist."""
        columns = self._columns
        if self._names:
            columns.check(self._names, source)
        for name, (used, other, where) in self._rivals.items():
            logger.warning(
                "%s: the columns %s and %s differ (%s) and may both be the %s: %s is used. Say which with %s",
                *(source, used, other, where, name, used, columns.hint(**{name: other})),
            )


def _check_subsets(drafts: Sequence[_Draft], columns: Columns) -> None:
    """Make rows without a split unusable where a column named subset, set or partition states that of others."""

    def stated(draft: _Draft) -> str | None:
        column = columns.of(tuple(draft.record.values)).get("split")
        return None if column is None else as_text(draft.record.values[column])

    if not any(draft.fields.get("split") for draft in drafts):
        return
    for draft in drafts:
        if draft.reason is None and draft.fields.get("split") is None and (value := stated(draft)):
            draft.reason = f"the split is {value!r}, expected train, valid or test"


def _draft(record: Record, folder: Path, options: ListOptions) -> _Draft:
    """Return the draft of a row. Raises CorpusError with the reason why the record cannot be used."""
    if record.reason is not None:
        raise CorpusError(record.reason)
    values, found = record.values, options.columns.of(tuple(record.values))
    if "path" not in found:
        raise CorpusError(missing_path(values, options.columns))
    draft = _place(record, values[found["path"]], folder, options.url)
    if "id" in found and (given := as_text(values[found["id"]])):
        draft.given = _checked_id(given)
    _select_part(draft, values, found)
    draft.fields = fields_of(values, options.columns)
    return draft


def missing_path(values: Mapping[str, Any], columns: Columns) -> str:
    """Return the sentence for a record without a known column of paths, with the columns that it has."""
    guess = next((name for name, value in values.items() if isinstance(value, str) and looks_like_audio(value)), None)
    listed = ", ".join(map(str, values)) or "nothing"
    return f"expected a column `path`, found {listed}. Say which it is: {columns.hint(path=guess or 'COLUMN')}"


def _place(record: Record, value: object, folder: Path, url: str | None) -> _Draft:
    """Return a draft with the place of the recording, and the name that its id is made of."""
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"the path is {repr(value)[:80]}, expected the path of a file")
    if url is not None and not is_url(value):
        try:
            value = urljoin(url, value)
        except ValueError as error:
            raise CorpusError(f"the path {value!r} is none that a URL can have: {error}") from error
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise CorpusError(f"the path {value!r} has a character that no file name has") from None
    if is_url(value):
        if not value.lower().startswith("file:"):
            return _remote(record, value)
        value = unquote(value[len("file://") :].partition("?")[0])
    if "\0" in value:
        raise CorpusError(f"the path is {value!r}, expected the path of a file")
    path = folder / _as_written(value, folder)
    return _Draft(record, path, name=os.path.abspath(path))


def _remote(record: Record, url: str) -> _Draft:
    if (reason := unfetchable_reason(url)) is not None:
        raise CorpusError(reason)
    parts = urlsplit(url)
    query = f"?{parts.query}".replace("/", "_") if parts.query else ""
    name = os.path.normpath(f"{parts.netloc.rpartition('@')[2]}/{unquote(parts.path)}{query}".replace("\0", "_"))
    return _Draft(record, Path(name), RemoteFile(url), name=f"/{name}")


def _as_written(value: str, folder: Path) -> str:
    """Return a path as this machine writes it; one that exists as it is given stays so."""
    odd = "\\" in value or value != value.strip() or value.startswith("~/") or value[0] in "{$"
    if not odd or os.path.lexists(folder / value):
        return value
    value = _PLACEHOLDER.sub("", value.strip(), count=1) if value.strip()[0] in "{$" else value.strip()
    return os.path.expanduser(value.replace("\\", "/") if os.sep == "/" else value)


def _checked_id(given: str) -> str:
    name = PurePosixPath(given)
    try:
        os.fsencode(given)
        is_name = not name.is_absolute() and ".." not in name.parts and "\0" not in given and bool(name.name)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise CorpusError(f"the id {given!r} cannot name a file: expected letters, digits, and / between folders")
    return name.as_posix()


def _select_part(draft: _Draft, values: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Set the offset and the duration of a draft whose record names a part of a file.

    NeMo and others state the duration of the whole file: without an offset it selects nothing.
    """
    if "offset" not in found:
        return
    if "stop" in found and "end" not in found and as_text(values[found["stop"]]):
        _select_samples(draft, values, found)
        return
    offset = seconds_of(values, found["offset"])
    duration, end = seconds_of(values, found.get("duration")), seconds_of(values, found.get("end"))
    draft.offset = offset or 0.0
    if duration is None and end is not None:
        if end <= draft.offset:
            raise CorpusError(f"{found['end']} is {end:g}, which is not after {found['offset']} {draft.offset:g}")
        duration = round(end - draft.offset, 6)
    draft.duration = duration
    draft.is_part = offset is not None or duration is not None


def _select_samples(draft: _Draft, values: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Set the part of SpeechBrain's `start` and `stop`, which count samples."""
    start, stop = seconds_of(values, found["offset"]) or 0.0, seconds_of(values, found["stop"]) or 0.0
    duration, rate = seconds_of(values, found.get("duration")), _sample_rate(draft.path)
    if rate is None:
        if start == 0 or not draft.path.exists():
            return  # a whole recording, or one whose absence is reported where it is read
        raise CorpusError(
            f"{found['offset']} and {found['stop']} count samples, as in SpeechBrain's lists, but the file does not "
            "state its sample rate. Give offset and duration in seconds"
        )
    if start == 0 and duration is not None and abs(stop / rate - duration) < _WHOLE_SLACK:
        return
    if stop <= start:
        raise CorpusError(f"{found['stop']} is {stop:g}, which is not after {found['offset']} {start:g}")
    draft.offset, draft.duration, draft.is_part = start / rate, (stop - start) / rate, True


@lru_cache(1024)
def _sample_rate(path: Path) -> int | None:
    try:
        return soundfile.info(str(path)).samplerate
    except (soundfile.LibsndfileError, OSError):
        return None


def _named_path(record: Record, source: Path, options: ListOptions) -> Path:
    """Return the path that an unusable record names, for the report; the list's own where it names none."""
    column = options.columns.of(tuple(record.values)).get("path")
    value = record.values.get(column) if column is not None else None
    return source.parent / value if isinstance(value, str) and value.strip() and "\0" not in value else source


def _own_id(record: Record, options: ListOptions) -> str | None:
    """Return the id that an unusable record gives; None where it gives none that can name a file."""
    column = options.columns.of(tuple(record.values)).get("id")
    try:
        given = as_text(record.values[column]) if column is not None else None
        return _checked_id(given) if given else None
    except CorpusError:
        return None


def _ids(drafts: Sequence[_Draft], source: Path, folder: Path) -> list[str]:
    """Return the ids of the rows.

    A given id is kept. Others are the path, relative to the folder or, if a path leaves it, to the folder that all have
    in common. Several rows of one file are told apart by the part and the channel that they name.

    Raises:
        CorpusError: an id is given twice.
    """
    lines: dict[str, str] = {}
    for draft in drafts:
        if (given := draft.given) is None:
            continue
        if given in lines:
            raise CorpusError(
                f"{source}, {draft.record.where}: the id {given} is already used in {lines[given]}. Make ids unique, "
                "or leave them out: then they are made from path and offset"
            )
        lines[given] = draft.record.where
    local = [draft for draft in drafts if draft.given is None and draft.content is None]
    remote = [draft for draft in drafts if draft.given is None and draft.content is not None]
    names = {id(draft): name for draft, name in zip(local, _relative([d.name for d in local], folder), strict=True)}
    names |= {id(draft): name for draft, name in zip(remote, _relative([d.name for d in remote]), strict=True)}
    rows_of_file = Counter(names.values())
    channels: dict[str, set[str | None]] = defaultdict(set)
    for draft in drafts:
        if draft.given is None:
            channels[names[id(draft)]].add(draft.fields["channel"])
    taken = set(lines)
    made: list[str] = []
    for draft in drafts:
        name = draft.given
        if name is None:
            file = name = names[id(draft)]
            if rows_of_file[file] > 1 and draft.is_part:
                name = f"{name}@{_part_name(draft)}"
            if len(channels[file]) > 1:
                name = channel_id(name, draft.fields["channel"])
            name = _numbered(name, taken)
            taken.add(name)
        made.append(name)
    return made


def _relative(paths: Sequence[str], folder: Path | None = None) -> list[str]:
    """Return absolute paths relative to a folder, or to the folder that all have in common if one of them leaves it."""
    if not paths:
        return []
    if folder is not None:
        base = os.path.join(os.path.abspath(folder), "")
        if all(path.startswith(base) for path in paths):
            return [Path(path[len(base) :]).as_posix() for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in set(paths)])
    return [Path(os.path.relpath(path, common)).as_posix() for path in paths]


def _part_name(draft: _Draft) -> str:
    """Return the seconds of a part, to the millisecond where that is exact: 2.000-4.500."""
    end = "" if draft.duration is None else _seconds_name(draft.offset + draft.duration)
    return f"{_seconds_name(draft.offset)}-{end}"


def _seconds_name(seconds: float) -> str:
    seconds = round(seconds, 6)
    text = f"{seconds:.3f}"
    return text if float(text) == seconds else f"{seconds:.6f}"


def _numbered(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: a.wav, then a.wav#2."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}#{number}"
    return unique
