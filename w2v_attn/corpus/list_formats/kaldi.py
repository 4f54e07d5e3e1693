"""Kaldi's data folders: wav.scp, and beside it text, segments and utt2spk.

A line of wav.scp may be a shell command that ends in `|`. None is ever run: of a command that only decodes a file, the
file is decoded here; others cost their rows.
"""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from w2v_attn.corpus.columns import ChannelNumber
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.remote_files import is_url
from w2v_attn.corpus.rows import Corpus, CorpusError
from w2v_attn.corpus.text_lines import NOT_UTF8, is_utf8, numbered_lines

SCRIPT = "wav.scp"
# Commands that write the whole file as it is, and their options without a meaning of their own.
_DECODERS = {
    "cat": frozenset[str](),
    "flac": frozenset(
        "-c -d -s -cd -dc -cds -dcs -csd -scd -sdc -dsc --decode --stdout --silent --totally-silent".split()
    ),
    "sph2pipe": frozenset("-p -f wav -fwav".split()),
}
_ARCHIVE = re.compile(r".*\.ark:\d+(?:\[.*\])?$")


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _recognises(path: Path) -> bool:
    return (path / SCRIPT).is_file() if path.is_dir() else path.suffix.lower() == ".scp"


def _read(path: Path, options: ListOptions) -> Corpus:
    data = _folder_of(path)
    script = path / SCRIPT if path.is_dir() else path
    recordings = {key: (value, number) for number, key, value in _table(script)}
    texts, speakers = _optional(data / "text"), _optional(data / "utt2spk")
    segments = data / "segments"
    if segments.is_file():
        source, records = segments, list(_segments(segments, script, recordings))
    else:
        source = script
        records = [_whole(key, value, f"line {number}", number) for key, (value, number) in recordings.items()]
    records = [_described(record, texts, speakers) for record in records]
    listed = {record.values.get("id") for record in records}
    for key, (_, number) in texts.items():
        if key not in listed:
            reason = f"the utterance {key} of text has no recording in {source.name}"
            records.append(Record(f"text, line {number}", {"id": key}, number, reason))
    return corpus_of(records, source, options, folder=_folder_of_paths(data, recordings))


def _table(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, key, value) of each line of a table. Raises CorpusError if a key is repeated."""
    lines: dict[str, int] = {}
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
        if key in lines:
            raise CorpusError(f"{path}, line {number}: the id {key} is already used in line {lines[key]}")
        lines[key] = number
        yield number, key, value.strip()


def _optional(path: Path) -> dict[str, tuple[str, int]]:
    return {key: (value, number) for number, key, value in _table(path)} if path.is_file() else {}


def _segments(path: Path, script: Path, recordings: dict[str, tuple[str, int]]) -> Iterator[Record]:
    """Yield a record for each line of `segments`: utterance, recording, start and end in seconds; an end of -1: all."""
    for number, key, value in _table(path):
        where, fields = f"line {number}", value.split()
        if len(fields) != 3:
            yield Record(where, {"id": key}, number, f"expected UTTERANCE RECORDING START END, found {key} {value}")
        elif fields[0] not in recordings:
            yield Record(where, {"id": key}, number, f"the recording {fields[0]} is not in {script.name}")
        else:
            whole = _whole(key, recordings[fields[0]][0], where, number)
            end = {} if _is_open(fields[2]) else {"end": fields[2]}
            values = {**whole.values, "start": fields[1], **end}
            yield Record(where, values, number, whole.reason)


def _is_open(end: str) -> bool:
    """Return whether a segment goes to the end of its recording."""
    try:
        return float(end) == -1
    except ValueError:
        return False


def _whole(key: str, value: str, where: str, number: int) -> Record:
    path, channel, reason = _file_of(value)
    if not is_utf8(key + value):
        reason = NOT_UTF8
    selected = {} if channel is None else {"channel": ChannelNumber(channel)}
    return Record(where, {"id": key, "path": path, **selected}, number, reason)


def _file_of(value: str) -> tuple[str, int | None, str | None]:
    """Return (file, channel, why it cannot be read) of an entry of wav.scp; never run a command."""
    if _ARCHIVE.match(value):
        return "", None, f"{value} is in a Kaldi archive, which is not read: write the recordings out as files"
    if not value.endswith("|"):
        return value, None, None
    try:
        program, *arguments = shlex.split(value.removesuffix("|"))
    except ValueError:
        program, arguments = "", []
    options = _DECODERS.get(os.path.basename(program))
    channel = None
    if os.path.basename(program) == "sph2pipe" and "-c" in arguments[:-1]:
        place = arguments.index("-c")
        if arguments[place + 1] in ("1", "2"):  # sph2pipe counts from 1
            channel = int(arguments[place + 1]) - 1
            del arguments[place : place + 2]
    files = [argument for argument in arguments if options is None or argument not in options]
    special = any(sign in value.removesuffix("|") for sign in "|;&<>`$")
    if options is None or special or len(files) != 1 or files[0].startswith("-"):
        command = value.removesuffix("|").strip()
        reason = (
            f"is the shell command {command!r}, and commands of a list are never run. Write recordings out as files "
            "(in Kaldi with wav-copy), or name the files themselves"
        )
        return "", None, reason
    return files[0], channel, None


def _described(record: Record, texts: dict[str, tuple[str, int]], speakers: dict[str, tuple[str, int]]) -> Record:
    """Return a record with its text and its speaker."""
    key = record.values["id"]
    values = dict(record.values)
    if key in texts:
        values["text"] = texts[key][0]
    if key in speakers:
        values["speaker"] = speakers[key][0]
    reason = NOT_UTF8 if not is_utf8(values.get("text", "")) else record.reason
    return Record(record.where, values, record.line, reason)


def _folder_of_paths(data: Path, recordings: dict[str, tuple[str, int]]) -> Path:
    """Return the folder of relative paths: they are relative to a recipe, which is often above the data folder."""
    first = next((path for path in (_file_of(value)[0] for value, _ in recordings.values()) if path), None)
    if first is None or is_url(first) or "\0" in first:
        return data
    above = [data, *data.absolute().parents[:3], Path.cwd()]
    return next((folder for folder in above if (folder / first).is_file()), data)


FORMAT = ListFormat("Kaldi data folder", _recognises, _read)
