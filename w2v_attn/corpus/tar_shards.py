"""The rows of tar shards in WebDataset's format: members with the same stem are one sample, audio and metadata.

Nothing is unpacked. Listing reads the headers; each recording is then a byte range of its shard, read when it is
needed. Rows are in the order of the shards, so that a run reads each shard from its beginning to its end.

Source: https://github.com/webdataset/webdataset (the format: a key, a dot, what the field is), POSIX pax.
"""

import json
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from w2v_attn.corpus.columns import Columns, fields_of
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row, Unusable

TAR_EXTENSION = ".tar"
COMPRESSED_EXTENSIONS = frozenset(".tar.gz .tgz .tar.bz2 .tbz2 .tar.xz .txz .tar.zst .tzst".split())
# Extensions of a sample's transcript, its class, and a JSON object with these and more.
TEXT, LABEL, METADATA = ".txt", ".cls", ".json"
# Bytes of the metadata of one recording; a longer member is not metadata.
MAX_METADATA_BYTES = 1 << 20
MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class TarMember:
    """The bytes of a member of a shard: `size` bytes from offset `begin`."""

    shard: str
    begin: int
    size: int

    def __call__(self) -> bytes:
        try:
            with open(self.shard, "rb", buffering=0) as file:
                content = os.pread(file.fileno(), self.size, self.begin)
                while 0 < len(content) < self.size:  # Linux reads at most 2 GiB at once
                    more = os.pread(file.fileno(), self.size - len(content), self.begin + len(content))
                    if not more:
                        break
                    content += more
        except OSError as error:
            raise CorpusError(f"cannot be read: the shard {self.shard}: {error.strerror or error}") from error
        if len(content) < self.size:
            raise CorpusError(f"cannot be read: the shard {self.shard} is shorter than it was")
        return content

    def state(self) -> str | None:
        try:
            found = os.stat(self.shard)
        except OSError:
            return None
        return f"{self.size} bytes from {self.begin} of {found.st_size} bytes, changed {found.st_mtime_ns}"


def is_shard_name(audio: str) -> bool:
    """Return whether a name, possibly with braces, is that of tar files, compressed or not."""
    return audio.lower().endswith((TAR_EXTENSION, *COMPRESSED_EXTENSIONS))


def expand_braces(audio: str) -> list[Path]:
    """Return the paths that WebDataset's brace notation names: corpus-{000..123}.tar, {train,dev}-{0..9}.tar.

    Raises:
        CorpusError: the braces hold neither an ascending range nor alternatives.
    """
    parts = re.split(r"\{([^{}]*)\}", audio)
    choices = [[part] if number % 2 == 0 else _choices(part, audio) for number, part in enumerate(parts)]
    return [Path("".join(chosen)) for chosen in product(*choices)]


def _choices(inside: str, audio: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span is None:
        choices = inside.split(",")
        if len(choices) < 2:
            raise CorpusError(f"{audio}: expected {{000..123}} or {{a,b}} between braces, found {{{inside}}}")
        return choices
    first, last = int(span[1]), int(span[2])
    if first > last:
        raise CorpusError(f"{audio}: {{{inside}}} counts down: write {{{span[2]}..{span[1]}}}")
    return [str(number).zfill(len(span[1])) for number in range(first, last + 1)]


def read_tar_shards(shards: Sequence[Path], folder: Path, columns: Columns | None = None) -> Corpus:
    """Return a row for each recording in these shards, in their order.

    Text, label, speaker and split come from the members KEY.txt, KEY.cls and KEY.json of the same sample; a column that
    the user names goes before the others. Without a label it is the name of the folder inside the shard, unless the
    user names its column. A damaged shard gives the recordings before the damage, and a
    row with `Unusable` content that reports it.

    Args:
        shards: The tar files.
        folder: A folder above them: ids are the path of the shard below it, without .tar, and the name in the shard.
        columns: Which key of the metadata is what.

    Raises:
        CorpusError: a shard is missing or compressed, a name occurs twice or leaves its shard, no shard has a
            recording that can be used, or none has a named column; the text names the shard.
    """
    _check(shards)
    columns = columns or Columns()
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    origins: dict[str, Path] = {}
    names: dict[str, None] = {}
    for shard in shards:
        found = _Shard(shard, shard.relative_to(folder).with_suffix("").as_posix(), columns)
        found.read()
        for row in found.rows():
            if row.id in origins:
                raise CorpusError(f"{shard} holds {row.id}, which {origins[row.id]} holds already: name one of them")
            origins[row.id] = shard
            rows.append(row)
        skipped += found.skipped
        names |= dict.fromkeys(found.columns())
    if not any(isinstance(row.content, TarMember) for row in rows):
        reason = f": {_reason(rows[0])}" if rows else f" (they hold {_listed(skipped)})"
        named = str(shards[0]) if len(shards) == 1 else f"{len(shards)} shards beginning with {shards[0]}"
        raise CorpusError(f"found no audio in {named}{reason}. Looked for {' '.join(sorted(AUDIO_EXTENSIONS))}")
    columns.check(names, shards[0] if len(shards) == 1 else f"{shards[0]} …")
    return Corpus(tuple(rows), skipped)


def _reason(row: Row) -> str:
    assert isinstance(row.content, Unusable)
    return f"{row.id} {row.content.reason}"


def _listed(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in skipped.most_common(5)) or "nothing"


def _check(shards: Sequence[Path]) -> None:
    compressed = next(
        (shard for shard in shards if is_shard_name(shard.name) and shard.suffix.lower() != TAR_EXTENSION), None
    )
    if compressed is not None:
        raise CorpusError(
            f"{compressed} is compressed: expected .tar, because a resumed run starts anywhere in a shard, and a "
            "compressed shard can only be read from its beginning. Decompress it (gunzip -k …); there is no need to "
            "unpack it, and audio hardly grows when it is decompressed"
        )
    missing = [shard for shard in shards if not shard.exists()]
    if missing:
        listed = ", ".join(map(str, missing[:MAX_LISTED])) + (" …" if len(missing) > MAX_LISTED else "")
        raise CorpusError(f"there is no file {listed}: {len(missing)} of {len(shards)} shards are missing")
    other = next((shard for shard in shards if not shard.is_file()), None)
    if other is not None:
        raise CorpusError(f"{other} is not a regular file: expected one, because recordings are read by their offset")


@dataclass
class _Metadata:
    """What the other members of a sample say about its recordings."""

    text: str | None = None
    label: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def record(self, columns: Columns) -> dict[str, Any]:
        """Return the metadata with the members of their own, as `text` and `label`, which go before its keys.

        A column that the user names is the key of the metadata, where there is such a key.
        """
        members = {"text": self.text, "label": self.label or None}
        return self.fields | {
            name: value
            for name, value in members.items()
            if value is not None and not (name in self.fields and name in columns.named)
        }


class _Shard:
    """One shard. id: the beginning of the ids of its recordings. columns: which key of the metadata is what."""

    def __init__(self, path: Path, id: str, columns: Columns):
        self._path, self._id, self._columns = path, id, columns
        self._recordings: dict[str, TarMember | Unusable] = {}
        self._metadata: dict[str, _Metadata] = {}
        self._names: set[str] = set()
        self._broken: str | None = None
        self.skipped: Counter[str] = Counter()

    def read(self) -> None:
        """Read the headers, up to the first damage."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                if size == 0:
                    self._broken = "is empty (0 bytes)"
                    return
                # "r:" rejects compressed files under any name.
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in _members(tar):
                        if member.offset_data + member.size > size and member.isreg():
                            self._broken = f"is truncated in the middle of {member.name}"
                            return
                        self._take(member, file)
                    file.seek(tar.offset)  # type: ignore[attr-defined]
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        self._broken = f"is truncated or damaged after {tar.offset:,} bytes: its end is missing"  # type: ignore[attr-defined]
        except tarfile.TarError as error:
            self._broken = f"is damaged, or not a tar file: {error}"
        except OSError as error:
            self._broken = f"cannot be read: {error.strerror or error}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows of its recordings, and one of the shard itself where it is damaged."""
        for name, content in self._recordings.items():
            metadata = self._metadata_of(name)
            known: dict[str, Any] = {}
            reason = metadata.reason
            try:
                known = fields_of(metadata.record(self._columns), self._columns)
                if "label" not in self._columns.chosen:
                    known["label"] = known["label"] or posixpath.basename(posixpath.dirname(name)) or None
            except CorpusError as error:
                reason = f"{self._path}, {name}: {error}"
            yield Row(
                f"{self._id}/{name}",
                self._path / name,
                **known,
                content=content if reason is None else Unusable(reason),
            )
        if self._broken is not None:
            reason = f"{self._broken}. Recordings after the first {len(self._recordings)} in it, if any, are lost"
            yield Row(f"{self._id}{TAR_EXTENSION}", self._path, content=Unusable(reason))

    def columns(self) -> Iterator[str]:
        """Yield the keys of its metadata; texts and labels in members of their own are `text` and `label`."""
        for metadata in self._metadata.values():
            yield from metadata.fields
            if metadata.text is not None:
                yield "text"
            if metadata.label is not None:
                yield "label"

    def _metadata_of(self, name: str) -> _Metadata:
        """Find metadata by stem, else by WebDataset's key, which ends at the first dot: a.left.wav belongs to a.txt."""
        stem = name.removesuffix(posixpath.splitext(name)[1])
        folder, base = posixpath.split(name)
        key = posixpath.join(folder, base.partition(".")[0])
        return self._metadata.get(stem) or self._metadata.get(key) or _Metadata()

    def _take(self, member: tarfile.TarInfo, file: Any) -> None:
        if member.isdir():
            return
        name = posixpath.normpath(member.name.lstrip("/"))  # as tar itself does
        if name.split("/")[0] == "..":
            raise CorpusError(f"{self._path}: the name {member.name} leaves the shard")
        stem, extension = posixpath.splitext(name)
        extension = extension.lower()
        recording = extension in AUDIO_EXTENSIONS and not posixpath.basename(name).startswith(".")
        is_metadata = extension in (TEXT, LABEL, METADATA) and member.isreg()
        if not recording and not is_metadata:
            self.skipped[extension or "no extension"] += 1
            return
        if name in self._names:
            raise CorpusError(f"{self._path}: the name {name} occurs twice: rename or remove one of them")
        self._names.add(name)
        if is_metadata:
            self._read_metadata(stem, extension, member, file)
        elif not member.isreg() or member.issparse():
            kind = f"a link to {member.linkname}" if member.linkname else "not a regular file"
            self._recordings[name] = Unusable(f"is {kind} in the shard {self._path}, which is not supported")
        else:
            self._recordings[name] = TarMember(os.fspath(self._path), member.offset_data, member.size)

    def _read_metadata(self, stem: str, extension: str, member: tarfile.TarInfo, file: Any) -> None:
        where = f"{self._path}, {member.name}"
        metadata = self._metadata.setdefault(stem, _Metadata())
        if member.size > MAX_METADATA_BYTES:
            metadata.reason = (
                f"{where}: has {member.size:,} bytes, expected the metadata of one recording, at most "
                f"{MAX_METADATA_BYTES:,} bytes"
            )
            return
        file.seek(member.offset_data)
        try:
            content = file.read(member.size).decode("utf-8-sig").strip()
            fields = json.loads(content) if extension == METADATA else metadata.fields
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            metadata.reason = f"{where}: cannot be read: {error}"
            return
        if not isinstance(fields, dict):
            metadata.reason = f"{where}: expected an object with text, label …, found {content[:60]}"
        elif extension == METADATA:
            metadata.fields = fields
        elif extension == TEXT:
            metadata.text = content
        else:
            metadata.label = content


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
        yield member
