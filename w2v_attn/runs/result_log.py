"""`….jsonl`: the results of a run, a line for each recording, which a resumed run keeps.

During a run each result is appended to a journal, `.NAME.unfinished`; at its end all results are written to the file
itself, in the order of the rows. Where the file is for the rows of one list, the journal keeps the results of others.
A line states what it was computed from: the configuration, and the state of the source. So it is kept only where the
recording would get the same result again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import CachedResult
from w2v_attn.runs.row_reader import is_location_of, source_state
from w2v_attn.whole_files import written_whole

# Digits of the hash of the configuration in each line.
FINGERPRINT_DIGITS = 16
ORIGIN = ("duration", "flags", "conversions", "source_state", "fingerprint")


class ResultLog:
    """The results in a folder, while a run holds the folder. A context that closes the files.

    Memory holds only where the line of each recording is.

    Args:
        output: The folder.
        name: The name of the file.
        fingerprint: What determines the results. Lines of another configuration are ignored, and replaced at the end.

    Raises:
        RunError: the folder cannot be read or written.
    """

    def __init__(self, output: Path, name: str, fingerprint: Mapping[str, str]):
        self._path, self._journal_path = output / name, output / f".{name}.unfinished"
        described = json.dumps(dict(fingerprint), sort_keys=True)
        self._fingerprint = hashlib.sha256(described.encode()).hexdigest()[:FINGERPRINT_DIGITS]
        self._lines: dict[str, tuple[BinaryIO, int, int]] = {}
        self._journal: BinaryIO | None = None
        self._end = 0
        try:
            self._finished = self._open(self._path)
            self._unfinished = self._open(self._journal_path)
        except OSError as error:
            raise RunError(f"cannot read {self._path}: {error.strerror or error}") from error

    def __enter__(self) -> "ResultLog":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._finished, self._unfinished, self._journal):
            if file is not None:
                file.close()

    def find(self, row: Row) -> dict[str, Any] | None:
        """Return what was added for a row, if its source has not changed since; in any thread.

        Raises:
            ValueError: the result belongs to another file with the same id.
        """
        record = self._read(row.id)
        state = source_state(row)
        if record is None or state is None:
            return None  # a source that cannot be read now keeps its result; the row's outcome states the reason
        if record["source_state"] == state:
            return record
        if not is_location_of(row, record["path"]):
            raise ValueError(
                f"{self._path} holds the result of {record['path']}, and {row.path} has the same id: "
                "name another output"
            )
        self.discard(row)
        return None

    def discard(self, row: Row) -> None:
        """Forget the result of a row: it is computed again."""
        self._lines.pop(row.id, None)

    def add(self, row: Row, recording: Recording, result: Mapping[str, Any]) -> None:
        """Append the result of a row to the journal. Raises OSError.

        Args:
            row: The row.
            recording: Its recording.
            result: A JSON object. Its id, path and origin are added.
        """
        record = {"id": row.id, "path": row.location, **result, **self.origin(recording)}
        # A file name that is not Unicode has surrogates, which become escapes of JSON.
        line = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        if self._journal is None:
            self._journal = self._journal_path.open("a+b", buffering=0)
            self._end = self._journal.seek(0, os.SEEK_END)
        try:
            _write_all(self._journal, line)
        except OSError:
            with suppress(OSError):
                os.truncate(self._journal.fileno(), self._end)
            raise
        self._lines[row.id] = (self._journal, self._end, len(line))
        self._end += len(line)

    def origin(self, recording: Recording) -> dict[str, Any]:
        """Return what a line states of a recording and of the configuration."""
        return {
            "duration": recording.duration,
            "flags": list(recording.flags),
            "conversions": list(recording.conversions),
            "source_state": recording.source,
            "fingerprint": self._fingerprint,
        }

    def finish(self, rows: Sequence[Row]) -> None:
        """Write the file from all results, in the order of the rows, and remove the journal.

        Results of rows that are not in the list stay behind the others: they may be those of an earlier list.

        Raises:
            OSError: it cannot be written; the journal stays.
        """
        ordered = dict.fromkeys([*(row.id for row in rows if row.id in self._lines), *self._lines])
        if ordered and not self._is_written(ordered):
            self._write(self._path, ordered)
        self._journal_path.unlink(missing_ok=True)

    def finish_with(self, ids: Collection[str], write: Callable[[], None]) -> None:
        """Replace the file by the results of these rows alone; the journal keeps those of other rows.

        Args:
            ids: The ids of the rows.
            write: Writes the file.

        Raises:
            OSError: it cannot be written; the journal stays.
        """
        others = [id for id in self._lines if id not in ids]
        if others:  # some may be in the file alone, which `write` replaces
            self._write(self._journal_path, self._lines)
        write()
        if others:
            self._write(self._journal_path, others)
        else:
            self._journal_path.unlink(missing_ok=True)

    def _write(self, path: Path, ids: Iterable[str]) -> None:
        with written_whole(path) as temporary, temporary.open("wb") as file:
            for id in ids:
                file.write(self._line(id))

    def _is_written(self, ordered: Mapping[str, Any]) -> bool:
        """Return whether the file has exactly these lines already."""
        end = 0
        for id in ordered:
            file, offset, length = self._lines[id]
            if file is not self._finished or offset != end:
                return False
            end += length
        return self._path.stat().st_size == end

    def _open(self, path: Path) -> BinaryIO | None:
        """Open a file of an earlier run, if there is one, and note its lines. Raises OSError."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            with suppress(ValueError, KeyError, TypeError):  # damaged
                record = json.loads(line)
                if record["fingerprint"] == self._fingerprint and {"path", *ORIGIN} <= record.keys():
                    self._lines[record["id"]] = (file, end, len(line))
            end += len(line)
        if path == self._journal_path and end < os.fstat(file.fileno()).st_size:
            os.truncate(path, end)  # a kill left the last line incomplete; the next one must not continue it
        return file

    def _read(self, id: str) -> dict[str, Any] | None:
        return json.loads(self._line(id)) if id in self._lines else None

    def _line(self, id: str) -> bytes:
        file, offset, length = self._lines[id]
        return os.pread(file.fileno(), length, offset)


def origin_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a line that `ResultLog.origin` returned."""
    return {name: record[name] for name in ORIGIN}


def cached_result(record: Mapping[str, Any], result: Any, sample_rate: int) -> CachedResult[Any]:
    """Return a result with what a line of the log states of its recording. sample_rate: of the waveform, in Hz."""
    samples = round(record["duration"] * sample_rate)
    return CachedResult(result, samples, sample_rate, tuple(record["flags"]), tuple(record["conversions"]))


def _write_all(file: BinaryIO, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += file.write(content[written:])
