"""JSON lines: an object for each recording, among them NeMo's manifests."""

import json
from collections.abc import Iterator
from pathlib import Path

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import corpus_of
from w2v_attn.corpus.rows import Corpus, CorpusError, read_lines

EXTENSIONS = frozenset((".jsonl", ".json"))


def _read(path: Path, options: ListOptions) -> Corpus:
    return corpus_of(_records(path), path, options.root)


def _records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(f"{path}, line {number}: is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{path}, line {number}: expected an object with a path, got {line.strip()[:60]}")
        yield number, record


FORMAT = ListFormat("JSON lines", lambda path: path.suffix.lower() in EXTENSIONS, _read)
