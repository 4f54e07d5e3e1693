"""The folder that a conversion writes to: its own, and it says there what it is."""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.whole_files import TEMPORARY, written_whole

CONVERSION = "conversion.json"
FAILURES = "failures.jsonl"


def check_conversion_folder(output: Path, source: Path, request: dict[str, object]) -> None:
    """Raises FeatureSetError where a conversion to `output` would mix with what is there already."""
    ours, theirs = output.resolve(), source.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise FeatureSetError(f"output={output} and features={source} lie in each other: name a folder of its own")
    if not output.exists() or not any(output.iterdir()):
        return
    record = _read(output)
    if record is None:
        raise FeatureSetError(f"output={output} is not empty, and holds no conversion: name a new folder")
    if record.get("request") != request:
        raise FeatureSetError(f"output={output} holds another conversion, see its {CONVERSION}: name a new folder")


@contextmanager
def acquire_conversion_folder(
    output: Path, request: dict[str, object]
) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """The folder, locked, and record to be unfinished; what this gives is called at its end with what was done: `written`
    recordings, and more.

    Raises:
        FeatureSetError: another process writes to it. OSError: it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise FeatureSetError(f"another conversion writes to output={output} right now") from error
            # else: a file system without locks
        for leftover in output.rglob(f"{TEMPORARY}*"):
            if leftover.is_file():
                leftover.unlink()
        (output / FAILURES).unlink(missing_ok=True)
        _write(output, {"request": request, "whole": False})
        yield lambda done: _write(output, {"request": request, "whole": True, **done})
    finally:
        os.close(lock)


def incomplete_reason(folder: Path, recordings: int) -> str | None:
    """What a conversion's folder that holds so many recordings lacks; None: nothing, or it is no conversion's."""
    record = _read(folder)
    if record is None:
        return None
    if record.get("whole") is not True:
        return "its conversion has not come to its end; the same command starts it again"
    written = record.get("written")
    return None if written == recordings else f"there are {recordings} recordings, its conversion wrote {written}"


def note_failure(output: Path, id: str, reason: str) -> None:
    """Adds a line to failures.jsonl."""
    with (output / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": id, "reason": reason}) + "\n")


def _write(output: Path, record: dict[str, object]) -> None:
    with written_whole(output / CONVERSION) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read(folder: Path) -> dict[str, object] | None:
    try:
        return json.loads((folder / CONVERSION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
