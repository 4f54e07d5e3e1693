"""`failures.jsonl`: the rows that could not be used, each with a sentence, and a stable code for programs."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.whole_files import write_whole

FAILURE_LOG = "failures.jsonl"


class FailureLog:
    """The failure log of a run: each failure is appended at once; on closing, lines are put in the order of the rows.

    It starts with the failures of earlier runs. When this run reaches a row, its new outcome replaces the old one;
    until the log is closed the file may hold a line of each, and the later one is valid.

    Raises:
        RunError: the output cannot be written.
    """

    def __init__(self, output: Path, rows: Sequence[Row]):
        self._folder, self._path = output, output / FAILURE_LOG
        self._rows = rows
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._lines = read_failures(output)
            self._lines = dict(self._in_order())  # without rows that are no longer in the list
            self._rewrite()
        except OSError as error:
            raise RunError(f"cannot write to {output}: {error.strerror or error}") from error

    def __enter__(self) -> "FailureLog":
        return self

    def __exit__(self, *_: object) -> None:
        # If the disk is full, the lines stay in the order of their arrival; none is missing.
        with suppress(OSError):
            self._rewrite()

    def note(self, outcome: Outcome[Any]) -> None:
        """Record the outcome of a row."""
        row, reason = outcome.row, outcome.reason
        if reason is None:
            self._lines.pop(row.id, None)
            return
        about: dict[str, object] = {
            "id": row.id,
            "path": row.location,
            "reason": reason,
            "kind": outcome.kind or "other",
        }
        if row.line is not None:
            about["line"] = row.line
        line = json.dumps(about) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        self._lines[row.id] = line

    def _in_order(self) -> Iterator[tuple[str, str]]:
        """Return ids and lines in the order of the rows."""
        return ((row.id, self._lines[row.id]) for row in self._rows if row.id in self._lines)

    def _rewrite(self) -> None:
        write_failures(self._folder, [line for _, line in self._in_order()])


def read_failures(folder: Path) -> dict[str, str]:
    """Return the lines of a folder's failure log by row id, without lines that a kill truncated. Raises OSError."""
    lines = {}
    with suppress(FileNotFoundError):
        for line in (folder / FAILURE_LOG).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):
                lines[json.loads(line)["id"]] = line
    return lines


def write_failures(folder: Path, lines: Sequence[str]) -> None:
    """Write these lines as a folder's failure log; without lines the file is removed. Raises OSError."""
    path, content = folder / FAILURE_LOG, "".join(lines).encode()
    if not content:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)
