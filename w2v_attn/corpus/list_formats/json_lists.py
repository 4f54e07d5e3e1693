"""JSON: an object for each recording, a line each as in NeMo's manifests, or all in an array or SpeechBrain's dict."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from w2v_attn.corpus.columns import Columns
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import Corpus
from w2v_attn.corpus.text_lines import NOT_UTF8, is_utf8, numbered_lines

EXTENSIONS = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz")


def is_json(path: Path) -> bool:
    """Return whether a file is JSON, by its name."""
    return path.is_file() and path.name.lower().endswith(EXTENSIONS)


def _read(path: Path, options: ListOptions) -> Corpus:
    return corpus_of(read_records(path), path, options)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the record of each recording in a JSON file.

    Raises:
        CorpusError: the file cannot be read.
    """
    lines = numbered_lines(path)
    start = next(((number, line) for number, line in lines if line.strip()), None)
    if start is None:
        return
    first = _parsed(start[1])
    following = next(((number, line) for number, line in lines if line.strip()), None)
    if isinstance(first, Mapping) and (following is not None or _is_record(first)):
        yield _record(*start)
        if following is not None:
            yield _record(*following)
        yield from (_record(number, line) for number, line in lines if line.strip())
        return
    rest = [start, *([following] if following else []), *lines]
    whole, error = (first, None) if following is None else _parsed_whole("\n".join(line for _, line in rest))
    entries = None if error else entries_of(whole)
    if entries is not None:
        yield from entries
    elif error is not None and start[1].strip() in ("[", "{", "[{"):
        yield Record(f"line {start[0]}", {}, start[0], f"begins an array or a dict that is not JSON: {error}")
    else:
        yield from (_record(number, line) for number, line in rest if line.strip())


def first_record(path: Path) -> Mapping[str, Any]:
    """Return the values of the first record of a JSON file; empty where there is none."""
    return next((record.values for record in read_records(path)), {})


def entries_of(whole: object) -> Iterator[Record] | None:
    """Return the records of a JSON value: an array, a dict by id as SpeechBrain's, or a dict by column as pandas'.

    None where it is none of them.
    """
    if isinstance(whole, list):
        return _entries(whole) if any(isinstance(entry, Mapping | str) for entry in whole) else None
    if not isinstance(whole, Mapping) or not whole:
        return None
    has_path = "path" in Columns().of(tuple(whole))
    if all(isinstance(value, Mapping) for value in whole.values()):
        return _entries(_transposed({k: list(v.values()) for k, v in whole.items()})) if has_path else _by_id(whole)
    if has_path and all(isinstance(value, list) for value in whole.values()):
        return _entries(_transposed(whole))
    lists = [value for value in whole.values() if isinstance(value, list)]
    return _entries(lists[0]) if len(lists) == 1 else None  # {"data": [{"wav": …}]}


def _entries(entries: Sequence[object]) -> Iterator[Record]:
    for number, entry in enumerate(entries, 1):
        yield _of_object({"path": entry} if isinstance(entry, str) else entry, f"entry {number}", None)


def _by_id(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Record]:
    for id, entry in entries.items():
        yield _of_object({"id": id, **entry}, f"entry {id!r}", None)


def _transposed(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    count = max(map(len, columns.values()))
    return [{name: values[n] if n < len(values) else None for name, values in columns.items()} for n in range(count)]


def _record(number: int, line: str) -> Record:
    where = f"line {number}"
    if not is_utf8(line):
        return Record(where, {}, number, NOT_UTF8)
    try:
        return _of_object(json.loads(line), where, number)
    except (json.JSONDecodeError, RecursionError) as error:
        return Record(where, {}, number, f"is not JSON: {error}")


def _of_object(entry: object, where: str, line: int | None) -> Record:
    if isinstance(entry, Mapping):
        return Record(where, _flat(entry), line)
    return Record(where, {}, line, f"expected an object with a path, got {json.dumps(entry)[:60]}")


def _flat(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an object with the fields of its recording among its own: {"wav": {"file": "a.wav", "start": 0}}."""
    column = Columns().of(tuple(entry)).get("path")
    if column is None or not isinstance(nested := entry[column], Mapping):
        return entry
    if (inner := Columns().of(tuple(nested)).get("path")) is None:
        return entry
    others = {name: value for name, value in nested.items() if name not in (inner, "bytes", "array")}
    return {**others, **entry, column: nested[inner]}


def _is_record(entry: Mapping[str, Any]) -> bool:
    """Return whether an object describes one recording, and is no dict of several."""
    return not all(isinstance(value, Mapping | list) for value in entry.values())


def _parsed(text: str) -> Any:
    return _parsed_whole(text)[0]


def _parsed_whole(text: str) -> tuple[Any, str | None]:
    """Return the value of JSON, and what is wrong with it."""
    try:
        return json.loads(text), None
    except (json.JSONDecodeError, RecursionError) as error:
        return None, str(error)


FORMAT = ListFormat("JSON", is_json, _read)
