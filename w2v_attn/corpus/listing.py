"""`list_recordings`: the rows of any source of recordings, with fields from a pattern and replaced names."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from w2v_attn.corpus.columns import Columns, split_of
from w2v_attn.corpus.hub_datasets import HUB_PREFIX, read_dataset
from w2v_attn.corpus.list_formats.list_format import ListOptions
from w2v_attn.corpus.list_formats.registry import format_of, is_list_name
from w2v_attn.corpus.remote_files import RemoteFile, fetch, is_url, unfetchable_reason
from w2v_attn.corpus.rows import Corpus, CorpusError, Row, Unusable
from w2v_attn.corpus.several_sources import list_several, matches
from w2v_attn.corpus.tar_shards import expand_braces, is_shard_name, read_tar_shards

logger = logging.getLogger(__name__)

# The groups of a pattern that set fields of a row.
FIELDS = ("text", "label", "speaker", "split")
_SPLIT = {"split": "split"}


def list_recordings(
    audio: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    names: Mapping[str, str] | None = None,
    columns: Mapping[str, Any] | None = None,
    key_prefix: str = "",
) -> Corpus:
    """Return the recordings that `audio` names, with what is known about them.

    Args:
        audio: A recording, a list, a folder, tar shards, a data set, or the URL of one of them; a glob such as
            `corpus/**/*.wav`; or several of these, whose ids are then relative to the folder that all of them are in.
            A list is a table with a column `path`, JSON with such a key, or a text file with one path per line; see
            `columns.NAMES` for other columns and the names that they may have. Formats of other tools are recognised;
            `list_formats.registry` has all of them.
            A folder is searched recursively; the label of a recording is the name of its sub-folder.
            Tar shards are one .tar, several written as `corpus-{000..123}.tar`, or a folder of them; see
            `read_tar_shards`.
            A data set is Hugging Face's: a folder that `save_to_disk` wrote, a folder of the hub's .parquet files, or
            `hub:OWNER/NAME[/CONFIG][/SPLIT]`.
        root: The folder that a list's paths are relative to. Default: the list's own.
        pattern: A regular expression that is searched in each row's id; its groups named text, label, speaker and split
            set these fields: `(?P<label>\\d)_(?P<speaker>[a-z]+)_`.
        names: Replacements for whole texts and labels: {"0": "zero"}.
        columns: Field -> the name of its column, or its number, from 1, in a list without a header; None: the field is
            not read. Fields that are missing here are found by the usual names of their columns. A list of columns for
            the label: values of a regression, {"label": ["arousal", "valence"]}.
        key_prefix: The beginning of configuration keys in messages, such as `data.`.

    Returns:
        The rows. One that cannot be used has `Unusable` content with the reason and, in a list, its line.

    Raises:
        CorpusError: the file does not exist, it lists nothing, no row can be understood, or an id is given twice; the
            text names the line.
    """
    folder = Path(os.path.expanduser(root)) if root is not None else None
    options = ListOptions(root=folder, columns=Columns(columns, key_prefix))
    if isinstance(audio, str | os.PathLike):
        corpus = _list(os.fspath(audio), options)
    else:
        corpus = list_several([os.fspath(source) for source in audio], lambda source: _list(source, options))
    if folder is not None and not any(_is_below(row.path, folder) for row in corpus.rows):
        logger.warning(
            "%sroot=%s has no effect: it is the folder of relative paths in a list, and %s names no recording by one",
            *(key_prefix, root, audio if isinstance(audio, str | os.PathLike) else ", ".join(map(str, audio))),
        )
    if pattern is not None:
        expression = _compiled(pattern)
        corpus = Corpus(_with_groups(corpus.rows, expression), corpus.skipped)
    if names:
        corpus = Corpus(tuple(_renamed(row, names) for row in corpus.rows), corpus.skipped)
    return corpus


def _is_below(path: Path, folder: Path) -> bool:
    """Return whether a path begins with that of a folder, as both are written."""
    return (Path.cwd() / path).is_relative_to(Path.cwd() / folder)


def _list(audio: str, options: ListOptions) -> Corpus:
    if audio.startswith(HUB_PREFIX):
        return read_dataset(audio, options.columns)
    if is_url(audio):
        return _list_url(audio, options)
    path = Path(os.path.expanduser(audio))
    try:
        path.stat()
    except OSError as error:
        if "{" in audio and is_shard_name(audio):
            named = expand_braces(os.fspath(path))
            folder = Path(os.path.commonpath([os.path.dirname(path) for path in named]))
            return read_tar_shards(named, folder, options.columns)
        if found := matches(audio):
            return list_several(found, lambda source: _list(source, options))
        raise CorpusError(f"there is no file or folder {path} ({error.strerror})") from error
    return format_of(path).read(path, options)


def _list_url(url: str, options: ListOptions) -> Corpus:
    """Return the recording at a URL, or those that the list or the shard there holds."""
    if url.lower().startswith("file:"):
        return _list(unquote(url[len("file://") :]), options)
    if (reason := unfetchable_reason(url)) is not None:
        raise CorpusError(f"{url} {reason}")
    parts = urlsplit(url)
    name = Path(unquote(parts.path)).name or parts.netloc
    if not is_list_name(name):
        return Corpus((Row(name, Path(parts.netloc, *Path(unquote(parts.path)).parts[1:]), content=RemoteFile(url)),))
    try:
        path = fetch(url)
    except CorpusError as error:
        raise CorpusError(f"{url} {error}") from error
    corpus = format_of(path).read(path, replace(options, url=url))
    return Corpus(tuple(replace(row, id=row.id.replace(path.name, name, 1)) for row in corpus.rows), corpus.skipped)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise CorpusError(f"the pattern {pattern} is no regular expression: {error}") from error
    if not set(expression.groupindex) & set(FIELDS):
        raise CorpusError(f"the pattern {pattern} has no group named {', '.join(FIELDS)}: write (?P<label>…)")
    return expression


def _with_groups(rows: Sequence[Row], expression: re.Pattern[str]) -> tuple[Row, ...]:
    """Return rows with the fields that the pattern finds in their ids; a row without them cannot be used.

    Raises:
        CorpusError: the pattern fits no row; the text has the reason for the first one.
    """
    found: list[Row] = []
    reasons: list[str] = []
    for row in rows:
        if row.unusable_reason is None and (reason := _unfitting(row, expression)) is not None:
            reasons.append(f"{row.id}: {reason}")
            row = replace(row, content=Unusable(reason))
        elif row.unusable_reason is None and (match := expression.search(row.id)) is not None:
            fields = {name: value for name, value in match.groupdict().items() if name in FIELDS}
            if "split" in fields:
                fields["split"] = split_of(fields, _SPLIT)
            row = replace(row, **fields)
        found.append(row)
    if reasons and all(row.unusable_reason for row in found):
        raise CorpusError(reasons[0])
    return tuple(found)


def _unfitting(row: Row, expression: re.Pattern[str]) -> str | None:
    """Return why a pattern does not fit a row; None if it does."""
    match = expression.search(row.id)
    if match is None:
        return f"the pattern {expression.pattern} is not found in {row.id}"
    try:
        split_of(match.groupdict(), _SPLIT if "split" in expression.groupindex else {})
    except CorpusError as error:
        return str(error)
    return None


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    text = None if row.text is None else names.get(row.text, row.text)
    label = None if row.label is None else _renamed_label(row.label, names)
    return replace(row, text=text, label=label)


def _renamed_label(label: str, names: Mapping[str, str]) -> str:
    """Return a label under its name; of several, in a JSON list or between `;`, `|` or `,`, each under its own."""
    if label in names:
        return names[label]
    if label.startswith("["):
        try:
            labels = json.loads(label)
        except ValueError:
            labels = None
        if isinstance(labels, list) and any(str(one) in names for one in labels):
            return json.dumps([names.get(str(one), one) for one in labels], ensure_ascii=False)
    for separator in ";|,":
        labels = [part.strip() for part in label.split(separator)]
        if len(labels) > 1 and all(part in names for part in labels):
            return separator.join(names[part] for part in labels)
    return label
