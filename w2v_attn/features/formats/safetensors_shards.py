"""The layout `shards`: few large safetensors files for very many recordings, with an SQLite index.

A shard is an ordinary safetensors file with tensors `ID/LAYER`; its metadata holds the metadata of each recording as
JSON, under `recording:ID`. The index has a row for each recording with the positions of its tensors, so opening a set
takes constant time, and reading a tensor reads no other byte. A shard enters the index when it is complete.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from functools import partial
from io import RawIOBase
from itertools import repeat
from pathlib import Path

from torch import Tensor

from w2v_attn.dtypes import DTYPES
from w2v_attn.feature_files import DTYPE_OF_CODE
from w2v_attn.features.arrays import from_bytes
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats.interface import PerProcess, is_unicode
from w2v_attn.features.formats.shard_index import (
    FORMAT,
    INDEX,
    SHARD_BYTES,
    ShardBuffer,
    ShardIndex,
    check_shard,
    open_readonly,
)
from w2v_attn.features.recording_features import RecordingFeatures


class ShardsReader:
    """The reader. Ids are in the order of writing.

    Raises:
        DamagedError: the index is damaged.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._index = PerProcess(partial(open_readonly, folder / INDEX))
        self._checked: set[str] = set()
        try:
            about = dict(self._index.get().execute("SELECT name, value FROM about"))
        except sqlite3.Error as error:
            raise DamagedError(f"{folder / INDEX} cannot be read: {error}") from error
        if about.get("format") != FORMAT:
            raise DamagedError(f"{folder / INDEX} has the format {about.get('format')}, expected {FORMAT}")

    def __len__(self) -> int:
        return self._ask("SELECT COUNT(*) FROM recordings")[0][0]

    def __iter__(self) -> Iterator[str]:
        yield from (id for (id,) in self._ask("SELECT id FROM recordings ORDER BY number"))

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and is_unicode(id) and bool(self._ask("SELECT 1 FROM recordings WHERE id = ?", id))

    def open(self, id: str) -> RecordingFeatures:
        query = (
            "SELECT s.name, s.bytes, s.header, r.tensors, r.metadata "
            "FROM recordings r JOIN shards s ON s.number = r.shard WHERE r.id = ?"
        )
        ((name, size, header, tensors, metadata),) = self._ask(query, id)
        self._check(name, size, header)
        places = json.loads(tensors)
        return RecordingFeatures(id, places, json.loads(metadata), lambda layer: self._read(name, *places[layer]))

    def _ask(self, query: str, *values: object) -> list[tuple]:
        try:
            return self._index.get().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DamagedError(f"{self._folder / INDEX} cannot be read: {error}") from error

    def _check(self, name: str, size: int, header: int) -> None:
        """Check once whether a shard is the one in the index."""
        if name not in self._checked:
            check_shard(self._folder / name, size, header)
            self._checked.add(name)

    def _read(self, name: str, code: str, shape: list[int], begin: int, end: int) -> Tensor:
        content = bytearray(end - begin)
        try:
            with (self._folder / name).open("rb", buffering=0) as file:
                file.seek(begin)
                if _fill(file, content) != len(content):
                    raise DamagedError(f"{self._folder / name} ends before byte {end:,}")
        except OSError as error:
            raise DamagedError(f"{self._folder / name} cannot be read: {error.strerror}") from error
        return from_bytes(content, DTYPE_OF_CODE[code], shape)


class ShardsWriter:
    """The writer: shards of about `size` bytes, added to the index when complete. It starts a new set."""

    dtypes = DTYPES

    def __init__(self, folder: Path, size: int = SHARD_BYTES):
        self._folder, self._size = folder, size
        self._shard = 0
        self._filling = ShardBuffer(size)

    def __enter__(self) -> "ShardsWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in (INDEX, f"{INDEX}-journal"):
            (self._folder / leftover).unlink(missing_ok=True)
        self._index = ShardIndex(self._folder)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None and len(self._filling) > 0:
                self._flush()
        finally:
            self._index.close()

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        self._filling.add(id, features, metadata)
        if self._filling.is_full:
            self._flush()

    def _flush(self) -> None:
        """Write the pending recordings as a shard."""
        shard = self._filling.write(self._folder / f"features-{self._shard:05d}.safetensors")
        self._index.add(self._shard, shard, repeat(None))
        self._shard += 1
        self._filling = ShardBuffer(self._size)


def _fill(file: RawIOBase, content: bytearray) -> int:
    """Read until the buffer is full or the file ends; return the bytes read. One system call reads 2 GiB at most."""
    view, filled = memoryview(content), 0
    while filled < len(content) and (count := file.readinto(view[filled:])):
        filled += count
    return filled
