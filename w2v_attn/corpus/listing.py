"""`list_recordings`: the rows of any source of recordings, with fields from a pattern and replaced names."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from w2v_attn.corpus.columns import split_of
from w2v_attn.corpus.hub_datasets import HUB_PREFIX, read_dataset
from w2v_attn.corpus.list_formats.list_format import ListOptions
from w2v_attn.corpus.list_formats.registry import format_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row
from w2v_attn.corpus.several_sources import list_several, matches
from w2v_attn.corpus.tar_shards import expand_braces, is_shard_name, read_tar_shards

# The groups of a pattern that set fields of a row.
FIELDS = ("text", "label", "speaker", "split")


def list_recordings(
    audio: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Corpus:
    """Return the recordings that `audio` names, with what is known about them.

    Args:
        audio: A recording, a manifest, a folder, tar shards, or a data set; a glob such as `corpus/**/*.wav`; or
            several of these, whose ids are then relative to the folder that all of them are in.
            A manifest is a .csv or .tsv with a column `path`, a .jsonl with such a key, or a .txt or .lst with one path
            per line. Other columns are `id`, `text`, `label`, `speaker`, `split`, `offset` and `duration`. The
            manifests of NeMo, Common Voice and fairseq (.tsv beside .ltr or .wrd) are recognised.
            A folder is searched recursively; the label of a recording is the name of its sub-folder. LibriSpeech (by
            its *.trans.txt) and Speech Commands (by its testing_list.txt) are recognised.
            Tar shards are one .tar, several written as `corpus-{000..123}.tar`, or a folder of them; see
            `read_tar_shards`.
            A data set is Hugging Face's: a folder that `save_to_disk` wrote, a folder of the hub's .parquet files, or
            `hub:OWNER/NAME[/CONFIG][/SPLIT]`.
        root: The folder that a manifest's paths are relative to and must stay inside. Default: the manifest's own.
        pattern: A regular expression that is searched in each row's id; its groups named text, label, speaker and split
            set these fields: `(?P<label>\\d)_(?P<speaker>[a-z]+)_`.
        names: Replacements for whole texts and labels: {"0": "zero"}.

    Raises:
        CorpusError: the file does not exist, it lists nothing, or a row of a manifest is malformed; the text names the
            line.
    """
    if isinstance(audio, str | os.PathLike):
        corpus = _list(os.fspath(audio), root)
    else:
        corpus = list_several([os.fspath(source) for source in audio], lambda source: _list(source, root))
    if pattern is not None:
        expression = _compiled(pattern)
        corpus = Corpus(tuple(_with_groups(row, expression) for row in corpus.rows), corpus.skipped)
    if names:
        corpus = Corpus(tuple(_renamed(row, names) for row in corpus.rows), corpus.skipped)
    return corpus


def _list(audio: str, root: str | os.PathLike[str] | None) -> Corpus:
    if audio.startswith(HUB_PREFIX):
        return read_dataset(audio)
    path = Path(os.path.expanduser(audio))
    try:
        path.stat()
    except OSError as error:
        if "{" in audio and is_shard_name(audio):
            named = expand_braces(os.fspath(path))
            return read_tar_shards(named, Path(os.path.commonpath([os.path.dirname(path) for path in named])))
        if found := matches(audio):
            return list_several(found, lambda source: _list(source, root))
        raise CorpusError(f"there is no file or folder {path} ({error.strerror})") from error
    options = ListOptions(root=Path(os.path.expanduser(root)) if root is not None else None)
    return format_of(path).read(path, options)


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
