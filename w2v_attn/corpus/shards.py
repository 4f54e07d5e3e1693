"""Tar shards, as WebDataset has them -> rows: members of one stem are one sample, its audio beside what is known of it.

Nothing is unpacked. Listing goes from header to header; then each recording is a span of its shard, read in one piece
where it is needed. Rows stand in the order of the shards, so a run reads each from its beginning to its end.

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

from w2v_attn.corpus.manifests import fields_of
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row
from w2v_attn.corpus.unusable import Unusable

EXTENSION = ".tar"
COMPRESSED = frozenset(".tar.gz .tgz .tar.bz2 .tbz2 .tar.xz .txz .tar.zst .tzst".split())
# What stands beside the audio: what is said, its class, both and more.
TEXT, LABEL, METADATA = ".txt", ".cls", ".json"
# What is said of one recording; a member that is longer is something else under this name.
MOST_TOLD = 1 << 20
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Member:
    """The bytes of a member of a shard: `size` of them from `begin` on."""

    shard: str
    begin: int
    size: int

    def __call__(self) -> bytes:
        try:
            with open(self.shard, "rb", buffering=0) as file:
                content = os.pread(file.fileno(), self.size, self.begin)
                while 0 < len(content) < self.size:  # Linux gives 2 GiB at most at once
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


def names_shards(audio: str) -> bool:
    """Whether this names tar files, one or in braces."""
    return audio.lower().endswith((EXTENSION, *COMPRESSED))


def expand(audio: str) -> list[Path]:
    """What a name in WebDataset's brace notation stands for: corpus-{000..123}.tar, {train,dev}-{0..9}.tar."""
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


def read(shards: Sequence[Path], folder: Path) -> Corpus:
    """A row for each recording in these shards, in their order.

    Its id is the path of its shard below `folder`, without .tar, and its name in there. Its text, label, speaker and
    split stand beside it: KEY.txt, KEY.cls, KEY.json; its label is else the folder that it lies in. A shard that is
    broken gives the recordings before that, and a row that says so.

    Raises:
        CorpusError: a shard is not there or compressed, a name is there twice or leaves its shard, what stands beside
            a recording cannot be read, or there is no recording in any; it names the shard.
    """
    _check(shards)
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    origins: dict[str, Path] = {}
    for shard in shards:
        found = _Shard(shard, shard.relative_to(folder).with_suffix("").as_posix())
        found.read()
        for row in found.rows():
            if row.id in origins:
                raise CorpusError(f"{shard} holds {row.id}, which {origins[row.id]} holds already: name one of them")
            origins[row.id] = shard
            rows.append(row)
        skipped += found.skipped
    if not any(isinstance(row.content, Member) for row in rows):
        reason = f": {_reason(rows[0])}" if rows else f" (they hold {_listed(skipped)})"
        named = str(shards[0]) if len(shards) == 1 else f"{len(shards)} shards beginning with {shards[0]}"
        raise CorpusError(f"found no audio in {named}{reason}. Looked for {' '.join(sorted(AUDIO_EXTENSIONS))}")
    return Corpus(tuple(rows), skipped)


def _reason(row: Row) -> str:
    assert isinstance(row.content, Unusable)
    return f"{row.id} {row.content.reason}"


def _listed(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in skipped.most_common(5)) or "nothing"


def _check(shards: Sequence[Path]) -> None:
    compressed = next(
        (shard for shard in shards if names_shards(shard.name) and shard.suffix.lower() != EXTENSION), None
    )
    if compressed is not None:
        raise CorpusError(
            f"{compressed} is compressed: expected .tar, for a run that goes on begins anywhere in a shard, and a "
            "compressed one can be read from its beginning only. Decompress it (gunzip -k …); what is in it need not "
            "be unpacked, and audio hardly grows by it"
        )
    missing = [shard for shard in shards if not shard.exists()]
    if missing:
        listed = ", ".join(map(str, missing[:SHOWN])) + (" …" if len(missing) > SHOWN else "")
        raise CorpusError(f"there is no file {listed}: {len(missing)} of {len(shards)} shards are missing")
    other = next((shard for shard in shards if not shard.is_file()), None)
    if other is not None:
        raise CorpusError(f"{other} is no regular file: expected one, for recordings are read where they are in it")


@dataclass
class _Told:
    """What stands beside the recordings of one key."""

    text: str | None = None
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class _Shard:
    """One shard. id: what the ids of its recordings begin with."""

    def __init__(self, path: Path, id: str):
        self._path, self._id = path, id
        self._recordings: dict[str, Member | Unusable] = {}
        self._told: dict[str, _Told] = {}
        self._names: set[str] = set()
        self._broken: str | None = None
        self.skipped: Counter[str] = Counter()

    def read(self) -> None:
        """Goes through the headers. What is broken there ends it."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                if size == 0:
                    self._broken = "is empty (0 bytes)"
                    return
                # "r:" takes no compressed one, whatever it is called.
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in _members(tar):
                        if member.offset_data + member.size > size and member.isreg():
                            self._broken = f"is cut short in the middle of {member.name}"
                            return
                        self._take(member, file)
                    file.seek(tar.offset)  # type: ignore[attr-defined]
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        self._broken = f"is cut short or damaged after {tar.offset:,} bytes: no end is there"  # type: ignore[attr-defined]
        except tarfile.TarError as error:
            self._broken = f"is damaged, or no tar file: {error}"
        except OSError as error:
            self._broken = f"cannot be read: {error.strerror or error}"

    def rows(self) -> Iterator[Row]:
        """Of its recordings, and of itself where it is broken."""
        for name, content in self._recordings.items():
            told = self._told_of(name)
            known = fields_of(told.metadata, f"{self._path}, {name}")
            known["text"] = known["text"] if told.text is None else told.text
            known["label"] = told.label or known["label"] or posixpath.basename(posixpath.dirname(name)) or None
            yield Row(f"{self._id}/{name}", self._path / name, **known, content=content)
        if self._broken is not None:
            reason = f"{self._broken}. What may follow {len(self._recordings)} recordings in it is lost"
            yield Row(f"{self._id}{EXTENSION}", self._path, content=Unusable(reason))

    def _told_of(self, name: str) -> _Told:
        """By its stem; or by its key for WebDataset, which ends at the first dot: a.left.wav has a.txt."""
        stem = name.removesuffix(posixpath.splitext(name)[1])
        folder, base = posixpath.split(name)
        key = posixpath.join(folder, base.partition(".")[0])
        return self._told.get(stem) or self._told.get(key) or _Told()

    def _take(self, member: tarfile.TarInfo, file: Any) -> None:
        if member.isdir():
            return
        name = posixpath.normpath(member.name.lstrip("/"))  # as tar itself does
        if name.split("/")[0] == "..":
            raise CorpusError(f"{self._path}: the name {member.name} leads out of it")
        stem, extension = posixpath.splitext(name)
        extension = extension.lower()
        recording = extension in AUDIO_EXTENSIONS and not posixpath.basename(name).startswith(".")
        told = extension in (TEXT, LABEL, METADATA) and member.isreg()
        if not recording and not told:
            self.skipped[extension or "no extension"] += 1
            return
        if name in self._names:
            raise CorpusError(f"{self._path}: the name {name} is there twice, and which one counts is not clear")
        self._names.add(name)
        if told:
            self._tell(stem, extension, member, file)
        elif not member.isreg() or member.issparse():
            kind = f"a link to {member.linkname}" if member.linkname else "no regular file"
            self._recordings[name] = Unusable(f"is {kind} in the shard {self._path}, and is not followed")
        else:
            self._recordings[name] = Member(os.fspath(self._path), member.offset_data, member.size)

    def _tell(self, stem: str, extension: str, member: tarfile.TarInfo, file: Any) -> None:
        where = f"{self._path}, {member.name}"
        if member.size > MOST_TOLD:
            raise CorpusError(f"{where}: has {member.size:,} bytes, expected what is known of one recording")
        file.seek(member.offset_data)
        told = self._told.setdefault(stem, _Told())
        try:
            content = file.read(member.size).decode("utf-8-sig").strip()
            if extension == METADATA:
                told.metadata = json.loads(content)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(f"{where}: cannot be read: {error}") from error
        if not isinstance(told.metadata, dict):
            raise CorpusError(f"{where}: expected an object with text, label …, found {content[:60]}")
        if extension == TEXT:
            told.text = content
        elif extension == LABEL:
            told.label = content


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        yield member
