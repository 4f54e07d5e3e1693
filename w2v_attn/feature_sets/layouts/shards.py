"""Few large files for very many recordings: safetensors shards, and an index of what is where in SQLite.

A shard is an ordinary safetensors file: tensors `ID/LAYER`, and in its metadata, under `recording:ID`, the metadata of
each recording as JSON. The index has a row for each recording with the place of its tensors, so that opening a set does
not depend on its size, and reading a tensor reads no other byte. A shard is in the index when it is whole.
"""

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import RawIOBase
from pathlib import Path
from urllib.parse import quote

import torch
from safetensors.torch import save_file
from torch import Tensor

from w2v_attn.feature_files import written_whole
from w2v_attn.feature_sets.arrays import DTYPES, from_bytes
from w2v_attn.feature_sets.errors import DamagedError
from w2v_attn.feature_sets.layouts.names import check_text, is_text
from w2v_attn.feature_sets.processes import PerProcess
from w2v_attn.feature_sets.recording import Recording

FORMAT = "w2v_attn.shards/1"
INDEX = "index.sqlite"
# A shard is written when it has come to so many bytes; they are in memory until then.
SIZE = 512 << 20
# Or its header to so many: safetensors reads none above 100 MB, and small tensors have much of it.
HEADER = 16 << 20
ENTRY = 120  # bytes of a tensor's entry in it, besides its name

# header: CRC-32 of the safetensors header, so that a shard of another set is not read in the place of this one's.
# tensors: JSON, layer -> [dtype, shape, first byte in the file, byte after the last].
TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE shards (number INTEGER PRIMARY KEY, name TEXT NOT NULL, bytes INTEGER NOT NULL, header INTEGER NOT NULL);
CREATE TABLE recordings (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, shard INTEGER NOT NULL,
                         tensors TEXT NOT NULL, metadata TEXT NOT NULL);
"""

# safetensors' names.
CODES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class ShardsReader:
    """Reads by the index: ids in the order in which they were written.

    Raises:
        DamagedError: the index is not one.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._index = PerProcess(partial(_open_index, folder / INDEX))
        self._checked: set[str] = set()
        try:
            about = dict(self._index.get().execute("SELECT name, value FROM about"))
        except sqlite3.Error as error:
            raise DamagedError(f"{folder / INDEX} cannot be read: {error}") from error
        if about.get("format") != FORMAT:
            raise DamagedError(f"{folder / INDEX} is of the format {about.get('format')}, expected {FORMAT}")

    def __len__(self) -> int:
        return self._ask("SELECT COUNT(*) FROM recordings")[0][0]

    def __iter__(self) -> Iterator[str]:
        yield from (id for (id,) in self._ask("SELECT id FROM recordings ORDER BY number"))

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and is_text(id) and bool(self._ask("SELECT 1 FROM recordings WHERE id = ?", id))

    def open(self, id: str) -> Recording:
        query = (
            "SELECT s.name, s.bytes, s.header, r.tensors, r.metadata "
            "FROM recordings r JOIN shards s ON s.number = r.shard WHERE r.id = ?"
        )
        ((name, size, header, tensors, metadata),) = self._ask(query, id)
        self._check(name, size, header)
        places = json.loads(tensors)
        return Recording(id, places, json.loads(metadata), lambda layer: self._read(name, *places[layer]))

    def _ask(self, query: str, *values: object) -> list[tuple]:
        try:
            return self._index.get().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DamagedError(f"{self._folder / INDEX} cannot be read: {error}") from error

    def _check(self, name: str, size: int, header: int) -> None:
        """Looks once whether a shard is the one that the index means."""
        if name in self._checked:
            return
        path = self._folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise DamagedError(f"{path} has {found:,} bytes, expected {size:,}: convert again, or copy it again")
            if zlib.crc32(_read_header(path)) != header:
                raise DamagedError(f"{path} is not the shard that {INDEX} was made with: convert again")
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
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
        return from_bytes(content, CODES[code], shape)


class ShardsWriter:
    """Writes shards of about `size` bytes; the index knows a shard as soon as it is whole. Starts a set anew."""

    holds = DTYPES

    def __init__(self, folder: Path, size: int = SIZE):
        self._folder, self._size = folder, size
        self._shard = 0
        self._empty()

    def _empty(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._recordings: dict[str, tuple[tuple[str, ...], str]] = {}
        self._bytes = self._header = 0

    def __enter__(self) -> "ShardsWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in (INDEX, f"{INDEX}-journal"):
            (self._folder / leftover).unlink(missing_ok=True)
        self._index = sqlite3.connect(self._folder / INDEX)
        with _committed(self._index):
            self._index.executescript(TABLES)
            self._index.execute("INSERT INTO about VALUES ('format', ?)", (FORMAT,))
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush()
        finally:
            self._index.close()

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        check_text(id)
        self._tensors |= {f"{id}/{layer}": tensor for layer, tensor in features.items()}
        described = json.dumps(dict(metadata), ensure_ascii=False)
        self._recordings[id] = (tuple(features), described)
        self._bytes += sum(tensor.nbytes for tensor in features.values())
        self._header += len(json.dumps(described)) + sum(len(f"{id}/{layer}") + ENTRY for layer in features)
        if self._bytes >= self._size or self._header >= HEADER:
            self._flush()

    def _flush(self) -> None:
        """Writes what has come together as one shard."""
        if not self._recordings:
            return
        path = self._folder / f"features-{self._shard:05d}.safetensors"
        described = {f"recording:{id}": metadata for id, (_, metadata) in self._recordings.items()}
        with written_whole(path) as temporary:
            save_file(self._tensors, temporary, {"format": FORMAT, **described})
            os.chmod(temporary, (self._folder / INDEX).stat().st_mode & 0o777)  # safetensors lets nobody else read it
        header = _read_header(path)
        first, places = 8 + len(header), json.loads(header)
        rows = [
            (id, self._shard, json.dumps({layer: _place(places[f"{id}/{layer}"], first) for layer in layers}), metadata)
            for id, (layers, metadata) in self._recordings.items()
        ]
        with _committed(self._index):
            shard = (self._shard, path.name, path.stat().st_size, zlib.crc32(header))
            self._index.execute("INSERT INTO shards VALUES (?, ?, ?, ?)", shard)
            query = "INSERT INTO recordings (id, shard, tensors, metadata) VALUES (?, ?, ?, ?)"
            self._index.executemany(query, rows)
        self._shard += 1
        self._empty()


@contextmanager
def _committed(index: sqlite3.Connection) -> Iterator[None]:
    """A transaction. That the index cannot be written is an OSError, as with any other file."""
    try:
        with index:
            yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{INDEX}: {error}") from error


def _open_index(path: Path) -> sqlite3.Connection:
    # Python's SQLite takes turns among threads by itself; it is the connection that must not cross a fork.
    return sqlite3.connect(f"file:{quote(os.fspath(path.absolute()))}?mode=ro", uri=True, check_same_thread=False)


def _read_header(path: Path) -> bytes:
    """The JSON at the beginning of a safetensors file: 8 bytes of its length, little-endian, and then itself."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _place(described: dict, first: int) -> list:
    begin, end = described["data_offsets"]
    return [described["dtype"], described["shape"], first + begin, first + end]


def _fill(file: RawIOBase, content: bytearray) -> int:
    """Reads until a buffer is full or the file at its end -> bytes; one call gives 2 GiB at most."""
    view, filled = memoryview(content), 0
    while filled < len(content) and (count := file.readinto(view[filled:])):
        filled += count
    return filled
