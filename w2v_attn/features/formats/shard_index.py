"""Shards and their index: safetensors files that many recordings share, and an SQLite table of where each tensor is.

The same recordings in the same order give the same bytes; the safetensors library would write metadata in a different
order each time.
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
# A shard is written when it reaches this many bytes, which are in memory until then.
SHARD_BYTES = 512 << 20
# Or when its header does: safetensors refuses headers above 100 MB, and small tensors need much header.
MAX_HEADER_BYTES = 16 << 20
ENTRY_BYTES = 120  # bytes of a tensor's header entry besides its name
# Seconds to wait for another process that writes to the index; adding a shard takes milliseconds.
LOCK_TIMEOUT = 120.0

# header: CRC-32 of the safetensors header, to notice a shard of another set.
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
    """The entry of a recording in the index. tensors, metadata: JSON, as stored."""

    id: str
    tensors: str
    metadata: str


@dataclass(frozen=True)
class Shard:
    """The entry of a complete shard in the index. header: CRC-32 of the safetensors header."""

    name: str
    bytes: int
    header: int
    entries: tuple[IndexEntry, ...]


class ShardBuffer:
    """The recordings of a shard that is being filled. size: bytes of tensors at which it is full."""

    def __init__(self, size: int = SHARD_BYTES):
        self._size = size
        self._recordings: dict[str, tuple[dict[str, Tensor], str]] = {}
        self._bytes = self._header = 0

    def __len__(self) -> int:
        return len(self._recordings)

    @property
    def is_full(self) -> bool:
        """Whether it should be written."""
        return self._bytes >= self._size or self._header >= MAX_HEADER_BYTES

    def add(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Add a recording. Raises FeatureSetError if its id is not Unicode."""
        check_unicode(id)
        described = json.dumps(dict(metadata), ensure_ascii=False)
        self._recordings[id] = (dict(features), described)
        self._bytes += sum(tensor.nbytes for tensor in features.values())
        self._header += len(json.dumps(described)) + sum(len(f"{id}/{layer}") + ENTRY_BYTES for layer in features)

    def write(self, path: Path) -> Shard:
        """Write the shard atomically. Raises OSError."""
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
    """Return the index entry of a shard, read from the shard itself. Raises DamagedError."""
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
    described = (
        (id.removeprefix("recording:"), metadata) for id, metadata in header["__metadata__"].items() if id != "format"
    )
    entries = tuple(IndexEntry(id, json.dumps(tensors[id]), metadata) for id, metadata in described)
    return Shard(name, size, zlib.crc32(text), entries)


def read_shard_header(path: Path) -> bytes:
    """Return the JSON header of a safetensors file, which follows 8 bytes with its length, little-endian."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, os.fstat(file.fileno()).st_size))


def check_shard(path: Path, size: int, header: int) -> None:
    """Raise DamagedError if a file is not the shard in the index."""
    try:
        found = path.stat().st_size
        if found != size:
            raise DamagedError(f"{path} has {found:,} bytes, expected {size:,}: convert again, or copy it again")
        if zlib.crc32(read_shard_header(path)) != header:
            raise DamagedError(f"{path} is not the shard that {INDEX} was made with: convert again")
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error


class ShardIndex:
    """The index of a folder, open for writing; created if it does not exist.

    Several threads may use it, and several processes on one machine may write to one file, each with its own
    `ShardIndex`. SQLite's locks do not work between machines on a network file system.

    Raises:
        OSError: it cannot be written.
        DamagedError: the file is not an index.
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
            raise DamagedError(f"{self.path} has the format {found}, expected {FORMAT}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def query(self, query: str, *values: object) -> list[tuple]:
        """Return the rows of a query."""
        with self._lock, self._failures():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction, atomic and isolated from other processes."""
        with self._lock, self._failures():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends some transactions itself, such as on a full disk
                    self._connection.execute("ROLLBACK")
                raise

    def add(self, number: int, shard: Shard, numbers: Iterable[int | None]) -> None:
        """Add a complete shard. numbers: positions of its recordings, which define their order; None appends them."""
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
        """Raise OSError if the index cannot be written, as for any other file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            code = _ERRNO.get(error.sqlite_errorcode & 0xFF, errno.EIO)
            raise OSError(code, f"{self.path.name}: {error}") from error
        except sqlite3.IntegrityError:  # a mistake of ours, not of the file
            raise
        except sqlite3.DatabaseError as error:
            raise DamagedError(f"{self.path} cannot be read: {error}") from error


def open_readonly(path: Path) -> sqlite3.Connection:
    """Open an index for reading.

    SQLite opens it for writing if it may, to undo a transaction that was interrupted by a kill. Python's SQLite
    serializes threads itself; a connection must not be used across a fork.
    """

    return sqlite3.connect(f"file:{quote(os.fspath(path.absolute()))}?mode=rw", uri=True, check_same_thread=False)
