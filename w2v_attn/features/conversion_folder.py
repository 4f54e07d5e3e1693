"""The output folder of a conversion: guarded by a lock, with a record of the conversion."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.run_error import failure_kind
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.locks import LOCK, InUseError, acquire_lock
from w2v_attn.runs.output_folder import describe_process, in_use_error
from w2v_attn.whole_files import remove_leftovers, write_whole

CONVERSION = "conversion.json"


def check_conversion_folder(output: Path, source: Path, request: dict[str, object]) -> None:
    """Raise FeatureSetError if a conversion to `output` would mix with other files."""
    ours, theirs = output.resolve(), source.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise FeatureSetError(f"output={output} and features={source} overlap: name a separate folder")
    if not output.exists() or all(path.name == LOCK for path in output.iterdir()):
        return
    record = _read(output)
    if record is None:
        raise FeatureSetError(f"output={output} is not empty and does not hold a conversion: name a new folder")
    if record.get("request") != request:
        raise FeatureSetError(f"output={output} holds another conversion, see its {CONVERSION}: name a new folder")


@contextmanager
def acquire_conversion_folder(
    output: Path, request: dict[str, object]
) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Hold the folder exclusively, and mark it as incomplete; yield a function that marks it as complete.

    That function takes further entries of the record, such as `written`, the number of recordings.

    Raises:
        FeatureSetError: another process writes to the folder.
        OSError: it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire_lock(output / LOCK)
    except InUseError as error:
        raise FeatureSetError(str(in_use_error(output, error))) from None
    try:
        lock.write_holder(describe_process())
        remove_leftovers(Path(folder) for folder, _, _ in os.walk(output))
        (output / FAILURE_LOG).unlink(missing_ok=True)
        _write(output, {"request": request, "whole": False})
        yield lambda done: _write(output, {"request": request, "whole": True, **done})
    finally:
        lock.release()


def incomplete_reason(folder: Path, recordings: int) -> str | None:
    """Return why a folder with this many recordings is incomplete; None if it is complete, or not of a conversion."""
    record = _read(folder)
    if record is None:
        return None
    if record.get("whole") is not True:
        return "its conversion did not finish: run the same command again"
    written = record.get("written")
    return None if written == recordings else f"there are {recordings} recordings, its conversion wrote {written}"


def note_failure(output: Path, id: str, error: FeatureSetError) -> None:
    """Append a line to failures.jsonl."""
    with (output / FAILURE_LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": id, "reason": str(error), "kind": failure_kind(error)}) + "\n")


def _write(output: Path, record: dict[str, object]) -> None:
    write_whole(output / CONVERSION, (json.dumps(record, indent=1) + "\n").encode())


def _read(folder: Path) -> dict[str, object] | None:
    try:
        return json.loads((folder / CONVERSION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
