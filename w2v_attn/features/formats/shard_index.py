"""What shards consist of: safetensors files that many recordings share, and the index of what is where.

The same recordings in the same order give the same bytes: the library would write metadata in another order each time.
"""

import errno
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from w2v_attn.feature_files import file_size, lay_out_tensors, pad_header, write_tensors
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats.interface import check_unicode

FORMAT = "w2v_attn.shards/1"
INDEX = "index.sqlite"
# A shard is written when it has come to so many bytes; they are in memory until then.
SHARD_BYTES = 512 << 20
# Or its header to so many: safetensors reads none above 100 MB, and small tensors have much of it.
MAX_HEADER_BYTES = 16 << 20
ENTRY_BYTES = 120  # bytes of a tensor's entry in it, besides its name
# Seconds to wait for another process that writes to the index: what it writes of a shard takes milliseconds.
LOCK_TIMEOUT = 120.0

# header: CRC-32 of the safetensors header, so that a shard of another set is not read in the place of this one's.
# tensors: JSON, layer -> [dtype, shape, first byte in the file, byte after the last].
TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE shards (number INTEGER PRIMARY KEY, name TEXT NOT NULL, bytes INTEGER NOT NULL, header INTEGER NOT NULL);
CREATE TABLE recordings (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, shard INTEGER NOT NULL,
                         tensors TEXT NOT NULL, metadata TEXT NOT NULL);
"""

_ERRNO = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS, sqlite3.SQLITE_BUSY: errno.EBUSY}


@dataclass(frozen=True)
class IndexEntry:
    """What the index knows of a recording. tensors, metadata: JSON, as it is kept there."""

    id: str
    tensors: str
    metadata: str


@dataclass(frozen=True)
class Shard:
    """What the index knows of a shard that is whole. header: CRC-32 of the safetensors header."""

    name: str
    bytes: int
    header: int
    entries: tuple[IndexEntry, ...]


class ShardBuffer:
    """The recordings of a shard while they come together. size: bytes of tensors from which it is full."""

    def __init__(self, size: int = SHARD_BYTES):
        self._size = size
        self._recordings: dict[str, tuple[dict[str, Tensor], str]] = {}
        self._bytes = self._header = 0

    def __len__(self) -> int:
        return len(self._recordings)

    @property
    def is_full(self) -> bool:
        """Whether it is time to write it."""
        return self._bytes >= self._size or self._header >= MAX_HEADER_BYTES

    def add(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Takes a recording. Raises FeatureSetError where its name is not Unicode."""
        check_unicode(id)
        described = json.dumps(dict(metadata), ensure_ascii=False)
        self._recordings[id] = (dict(features), described)
        self._bytes += sum(tensor.nbytes for tensor in features.values())
        self._header += len(json.dumps(described)) + sum(len(f"{id}/{layer}") + ENTRY_BYTES for layer in features)

    def write(self, path: Path) -> Shard:
        """Writes the shard, whole or not at all. Raises OSError."""
        header: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
        header["__metadata__"] |= {f"recording:{id}": metadata for id, (_, metadata) in self._recordings.items()}
        named, about = lay_out_tensors(
            (f"{id}/{layer}", tensor)
            for id, (features, _) in self._recordings.items()
            for layer, tensor in features.items()
        )
        header |= about
        text = pad_header(json.dumps(header, separators=(",", ":"), ensure_ascii=False))
        write_tensors(path, text, named)
        return _described(path.name, file_size(text, named), text, header)


def read_shard(path: Path) -> Shard:
    """What the index must know of a shard, from the shard itself. Raises DamagedError."""
    try:
        text, size = read_shard_header(path), path.stat().st_size
        return _described(path.name, size, text, json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} cannot be read as a shard: {error}") from error


def _described(name: str, size: int, text: bytes, header: Mapping[str, Any]) -> Shard:
    first = 8 + len(text)
    tensors: dict[str, dict[str, list]] = {}
    for tensor, about in header.items():
        if tensor != "__metadata__":
            id, _, layer = tensor.rpartition("/")
            begin, end = about["data_offsets"]
            tensors.setdefault(id, {})[layer] = [about["dtype"], about["shape"], first + begin, first + end]
    described = ((id.removeprefix("recording:"), said) for id, said in header["__metadata__"].items() if id != "format")
    entries = tuple(IndexEntry(id, json.dumps(tensors[id]), said) for id, said in described)
    return Shard(name, size, zlib.crc32(text), entries)


def read_shard_header(path: Path) -> bytes:
    """The JSON at the beginning of a safetensors file: 8 bytes of its length, little-endian, and then itself."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, os.fstat(file.fileno()).st_size))


def check_shard(path: Path, size: int, header: int) -> None:
    """Raises DamagedError where a file is not the shard that the index means."""
    try:
        found = path.stat().st_size
        if found != size:
            raise DamagedError(f"{path} has {found:,} bytes, expected {size:,}: convert again, or copy it again")
        if zlib.crc32(read_shard_header(path)) != header:
            raise DamagedError(f"{path} is not the shard that {INDEX} was made with: convert again")
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error


class ShardIndex:
    """The index of a folder, for those who write to it; made where there is none.

    Several threads may use it, and several processes on one machine may write to one file, each by an `ShardIndex` of
    its own. On a network file system SQLite's locks do not hold between machines.

    Raises:
        OSError: it cannot be written. DamagedError: what is there is no index.
    """

    def __init__(self, folder: Path):
        self.path = folder / INDEX
        self._lock = threading.RLock()
        with self._failures():
            self._connection = sqlite3.connect(
                self.path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
            )
        with self.transaction():
            if not self.query("SELECT 1 FROM sqlite_master WHERE name = 'about'"):
                for table in TABLES.split(";")[:-1]:
                    self._connection.execute(table)
                self._connection.execute("INSERT INTO about VALUES ('format', ?)", (FORMAT,))
        if (found := self.query("SELECT value FROM about WHERE name = 'format'")) != [(FORMAT,)]:
            raise DamagedError(f"{self.path} is of the format {found}, expected {FORMAT}")

    def close(self) -> None:
        """Nobody uses it any more."""
        self._connection.close()

    def query(self, query: str, *values: object) -> list[tuple]:
        """The rows of an answer."""
        with self._lock, self._failures():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing, and nobody else's between what is asked and what is written."""
        with self._lock, self._failures():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends some by itself, such as where the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def add(self, number: int, shard: Shard, numbers: Iterable[int | None]) -> None:
        """Takes a shard that is whole. numbers: those of its recordings, which say their order; None: after all."""
        rows = [
            (place, entry.id, number, entry.tensors, entry.metadata)
            for place, entry in zip(numbers, shard.entries, strict=False)
        ]
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO shards VALUES (?, ?, ?, ?)", (number, shard.name, shard.bytes, shard.header)
            )
            connection.executemany("INSERT OR REPLACE INTO recordings VALUES (?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """That the index cannot be written is an OSError, as with any other file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            code = _ERRNO.get(error.sqlite_errorcode & 0xFF, errno.EIO)
            raise OSError(code, f"{self.path.name}: {error}") from error
        except sqlite3.IntegrityError:  # not the file is wrong, but what we do
            raise
        except sqlite3.DatabaseError as error:
            raise DamagedError(f"{self.path} cannot be read: {error}") from error


def open_readonly(path: Path) -> sqlite3.Connection:
    """An index that nothing is written to, but where a kill left a transaction that is to be undone first."""
    # Python's SQLite takes turns among threads by itself; it is the connection that must not cross a fork. Where the
    # file may not be written, SQLite opens it to be read.
    return sqlite3.connect(f"file:{quote(os.fspath(path.absolute()))}?mode=rw", uri=True, check_same_thread=False)
