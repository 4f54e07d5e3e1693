"""Hugging Face's AudioFolder: recordings below a folder, described in metadata.csv, .jsonl or .parquet."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from w2v_attn.corpus.audio_folder import list_folder, walk_files
from w2v_attn.corpus.columns import SPLITS, Columns, split_of
from w2v_attn.corpus.list_formats import delimited, json_lists, parquet_table
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row

NAMES = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))


def _recognises(path: Path) -> bool:
    return path.is_dir() and any(True for _ in _metadata_files(path, Columns()))


def _metadata_files(folder: Path, columns: Columns) -> Iterator[Path]:
    """Yield the files of this format below a folder: those with a column of paths."""
    for path in walk_files(folder):
        if path.name.lower() in NAMES and path.is_file() and _has_paths(path, columns):
            yield path


def _has_paths(path: Path, columns: Columns) -> bool:
    try:
        first = next(_records(path, columns), None)
    except CorpusError:
        return False
    return first is not None and "path" in columns.of(tuple(first.values))


def _records(path: Path, columns: Columns) -> Iterator[Record]:
    extension = path.suffix.lower()
    if extension == ".csv":
        return delimited.read_records(path, columns)
    return json_lists.read_records(path) if extension == ".jsonl" else parquet_table.read_records(path)


def _read(folder: Path, options: ListOptions) -> Corpus:
    """Return a row for each recording below the folder, with what the metadata says, and rows that it names in vain.

    The name of the sub-folder is the label where the metadata states none and has no columns but those of other fields:
    columns such as arousal describe the recordings themselves. A folder that is named like a split is no label.
    """
    unlabelled: set[str] = set()
    described: defaultdict[str, list[Row]] = defaultdict(list)
    metadata = sorted(_metadata_files(folder, options.columns))
    for path in metadata:
        at_its_folder = replace(options, root=options.root or path.parent)
        records = list(_records(path, options.columns))
        names = {name: None for record in records for name in record.values}
        has_more = bool(set(names) - set(options.columns.of(tuple(names)).values()))
        for row in corpus_of(records, path, at_its_folder, ids_under=folder).rows:
            if has_more:
                unlabelled.add(os.path.abspath(row.path))
            if row.unusable_reason is not None:
                row = replace(row, id=(path.parent.relative_to(folder) / row.id).as_posix())
            described[row.id if row.content is not None else os.path.abspath(row.path)].append(row)
    try:
        found = list_folder(folder)
    except CorpusError:  # only URLs, or recordings elsewhere
        found = Corpus(())
    rows: list[Row] = []
    for row in found.rows:
        place = os.path.abspath(row.path)
        known = described.pop(place, None)
        label = None if place in unlabelled or SPLITS.fullmatch(row.label or "") else row.label
        rows += [replace(one, label=one.label or label) for one in known or [replace(row, label=label)]]
    rows += (row for remaining in described.values() for row in remaining)
    rows = [row if row.split is not None else replace(row, split=_split_of(row, folder)) for row in rows]
    if twice := next((id for id, count in Counter(row.id for row in rows).items() if count > 1), None):
        raise CorpusError(f"{folder}: the id {twice} is in two metadata files: make ids unique, or leave them out")
    skipped = found.skipped - Counter(path.suffix.lower() for path in metadata)  # those are used
    return Corpus(tuple(sorted(rows, key=lambda row: row.id)), skipped)


def _split_of(row: Row, folder: Path) -> str | None:
    """Return the split that a folder above a recording is named after, as in `train/a.wav`, or None."""
    try:
        parents = Path(os.path.abspath(row.path)).relative_to(os.path.abspath(folder)).parts[:-1]
    except ValueError:
        return None
    named = next((name for name in parents if SPLITS.fullmatch(name)), None)
    return None if named is None else split_of({"split": named}, {"split": "split"})


FORMAT = ListFormat("AudioFolder", _recognises, _read)
