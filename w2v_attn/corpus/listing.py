"""`list_recordings`: whatever names recordings -> rows."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from w2v_attn.corpus import fairseq, folder, hub_sets, keywords, librispeech, parquet, shards
from w2v_attn.corpus.manifests import MANIFEST_EXTENSIONS, read_manifest, split_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row

# What a pattern may find in the path of a recording.
FIELDS = ("text", "label", "speaker", "split")


def list_recordings(
    audio: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Corpus:
    """The recordings that `audio` names, with what is known about them.

    audio: one recording; a manifest; a folder; tar shards; or a data set.
        A manifest is .csv or .tsv with a column `path`, .jsonl with such a key, or .txt or .lst with a path a line;
        other columns are `id`, `text`, `label`, `speaker`, `split`, `offset`, `duration`. NeMo's, Common Voice's and
        fairseq's (.tsv beside .ltr or .wrd) are known.
        A folder is searched with all that is in it; the label of a recording is the sub-folder that it is in.
        LibriSpeech's tree (with its *.trans.txt) and Speech Commands' (with its testing_list.txt) are known.
        Tar shards are a .tar, several as `corpus-{000..123}.tar`, or a folder of them; see `shards.read`.
        A data set is Hugging Face's: a folder that `save_to_disk` wrote, one with the hub's .parquet files, or
        `hub:OWNER/NAME[/CONFIG][/SPLIT]`.
    root: the folder from which a manifest's paths are taken, and which they may not leave. Default: the manifest's.
    pattern: a regular expression that is searched in each row's id; its groups named text, label, speaker and split
        give these fields: `(?P<label>\\d)_(?P<speaker>[a-z]+)_`.
    names: what texts and labels are called instead: {"0": "zero"}.

    Raises:
        CorpusError: there is no such file, nothing in it, or a row of a manifest is wrong; it names the line.
    """
    corpus = _list(os.fspath(audio), root)
    if pattern is not None:
        expression = _compiled(pattern)
        corpus = Corpus(tuple(_with_groups(row, expression) for row in corpus.rows), corpus.skipped)
    if names:
        corpus = Corpus(tuple(_renamed(row, names) for row in corpus.rows), corpus.skipped)
    return corpus


def _list(audio: str, root: str | os.PathLike[str] | None) -> Corpus:
    if audio.startswith(hub_sets.PREFIX):
        return hub_sets.read(audio)
    path = Path(os.path.expanduser(audio))
    try:
        path.stat()
    except OSError as error:
        if "{" in audio and shards.names_shards(audio):
            named = shards.expand(os.fspath(path))
            return shards.read(named, Path(os.path.commonpath([os.path.dirname(path) for path in named])))
        raise CorpusError(f"there is no file or folder {path} ({error.strerror})") from error
    if path.is_dir():
        if hub_sets.is_one(path):
            return hub_sets.read(os.fspath(path))
        for layout in (keywords, librispeech):
            if layout.is_one(path):
                return layout.read(path)
        return folder.walk(path)
    if path.suffix.lower() in MANIFEST_EXTENSIONS:
        if fairseq.is_one(path):
            return fairseq.read(path, Path(os.path.expanduser(root)) if root is not None else None)
        return read_manifest(path, Path(os.path.expanduser(root)) if root is not None else None)
    if shards.names_shards(path.name):
        return shards.read([path], path.parent)
    if path.suffix.lower() == parquet.EXTENSION:
        return parquet.read([path], path.parent)
    return Corpus((Row(path.name, path),))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise CorpusError(f"the pattern {pattern} is no regular expression: {error}") from error
    if not set(expression.groupindex) & set(FIELDS):
        raise CorpusError(f"the pattern {pattern} has no group named {', '.join(FIELDS)}: write (?P<label>…)")
    return expression


def _with_groups(row: Row, expression: re.Pattern[str]) -> Row:
    found = expression.search(row.id)
    if found is None:
        raise CorpusError(f"the pattern {expression.pattern} is not found in {row.id}")
    fields = {name: value for name, value in found.groupdict().items() if name in FIELDS}
    if "split" in fields:
        fields["split"] = split_of({"split": fields["split"]}, row.id)
    return replace(row, **fields)


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    text = None if row.text is None else names.get(row.text, row.text)
    label = None if row.label is None else names.get(row.label, row.label)
    return replace(row, text=text, label=label)
