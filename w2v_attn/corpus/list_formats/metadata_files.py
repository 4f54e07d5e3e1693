"""Hugging Face's AudioFolder: recordings below a folder, described in metadata.csv, .jsonl or .parquet."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from w2v_attn.corpus.audio_folder import list_folder, walk_files
from w2v_attn.corpus.columns import Columns
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
    """Return a row for each recording below the folder, with what the metadata says, and rows that it names in vain."""
    described: defaultdict[str, list[Row]] = defaultdict(list)
    metadata = sorted(_metadata_files(folder, options.columns))
    for path in metadata:
        at_its_folder = replace(options, root=options.root or path.parent)
        for row in corpus_of(_records(path, options.columns), path, at_its_folder, ids_under=folder).rows:
            if row.unusable_reason is not None:
                row = replace(row, id=(path.parent.relative_to(folder) / row.id).as_posix())
            described[row.id if row.content is not None else os.path.abspath(row.path)].append(row)
    try:
        found = list_folder(folder)
    except CorpusError:  # only URLs, or recordings elsewhere
        found = Corpus(())
    rows: list[Row] = []
    for row in found.rows:
        known = described.pop(os.path.abspath(row.path), None)
        # The name of the sub-folder is the label where the metadata states none.
        rows += [replace(one, label=one.label or row.label) for one in known] if known is not None else [row]
    rows += (row for remaining in described.values() for row in remaining)
    if twice := next((id for id, count in Counter(row.id for row in rows).items() if count > 1), None):
        raise CorpusError(f"{folder}: the id {twice} is in two metadata files: make ids unique, or leave them out")
    skipped = found.skipped - Counter(path.suffix.lower() for path in metadata)  # those are used
    return Corpus(tuple(sorted(rows, key=lambda row: row.id)), skipped)


FORMAT = ListFormat("AudioFolder", _recognises, _read)
