"""Resumable runs: the lock, recipe and fingerprint of a run folder, and checkpoints with checksums.

Trainer writes the files of a checkpoint one after the other, and later resumes from the newest folder, whatever its
contents. Here a file with the size and hash of every other file is written last; a folder without it, or with other
files than it lists, is torn and not used.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.locks import LOCK, InUseError, acquire_lock
from w2v_attn.runs.output_folder import describe_process, in_use_error
from w2v_attn.training.model_folder import RECIPE, RESULTS
from w2v_attn.training.options import Recipe
from w2v_attn.training.preflight import DataScan, named_splits
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.tasks.task_registry import task_class
from w2v_attn.whole_files import write_whole

CHECKPOINTS, LENGTHS, DROPPED, FINGERPRINT = "checkpoints", "lengths.jsonl", "dropped.jsonl", "fingerprint.json"
# Keys that may differ when a run resumes: they change where it runs, not what it computes.
FREE = {"device", "backend", "training.workers", "training.gradient_checkpointing"}


@contextmanager
def locked_run_folder(output: Path, recipe: Recipe) -> Iterator[None]:
    """Lock a run folder and bind it to a recipe; if the run is refused before training, the folder is left unchanged.

    Raises:
        ValueError: The folder cannot be written, is in use, has a finished run or another recipe, or other files.
    """
    if (output / RESULTS).is_file():
        raise ValueError(
            f"{output} contains a finished run: name another output, or use its model: model.checkpoint={output}"
        )
    was_there = output.is_dir()
    is_new = not was_there or all(path.name == LOCK for path in output.iterdir())
    if not is_new and not (output / RECIPE).is_file():
        raise ValueError(f"{output} contains files that are not of a run: name another output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(output / LOCK)
        lock.write_holder(describe_process())
    except InUseError as error:
        raise ValueError(str(in_use_error(output, error))) from None
    except OSError as error:
        raise ValueError(f"output={output} cannot be written: {error.strerror or error}") from error
    try:
        _check_recipe(output, recipe)
        yield
    except ValueError:  # refused before training
        if is_new and not (output / CHECKPOINTS).exists():
            shutil.rmtree(output)
            if was_there:
                output.mkdir()
        raise
    finally:
        lock.release()


def as_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML."""
    values = {"kind": task_class(recipe.task).name, **dataclasses.asdict(recipe)}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def check_fingerprint(output: Path, found: DataScan, task: Task, precision: str) -> None:
    """Write what a run depends on: data, symbols or labels, precision. A resumed run must have the same.

    Raises:
        ValueError: There are checkpoints, and the data, the symbols or labels, or the precision differ.
    """
    now = {"precision": precision, "symbols or labels": _hash(list(task.symbols()))}
    for split, rows in named_splits(found.splits):
        now[f"data to {split} on"] = _hash(
            [(row.id, task.reference(row), found.seconds[f"{split} {row.id}"], *_channel(row)) for row in rows]
        )
    path = output / FINGERPRINT
    if has_checkpoints(output) and path.is_file():
        before = json.loads(path.read_text())
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise ValueError(
                f"{output} was started with another {' and another '.join(changed)}. Give the same again to "
                "resume, or name another output"
            )
    path.write_text(json.dumps(now, indent=1))


def _channel(row: Row) -> tuple[str, ...]:
    """Return the channel of a row where it names one: fingerprints of runs before there were channels stay equal."""
    return () if row.channel is None else (str(row.channel),)


def has_checkpoints(output: Path) -> bool:
    """Return whether a run folder contains checkpoints."""
    return any((output / CHECKPOINTS).glob("*"))


def write_dropped(found: DataScan, output: Path) -> None:
    """Write `dropped.jsonl`: the recordings that are not used, with the reason."""
    with (output / DROPPED).open("w", encoding="utf-8", errors="replace") as file:
        for dropped in found.dropped:
            row = dropped.row
            record: dict[str, object] = {
                "id": row.id,
                "path": row.location,
                "split": dropped.split,
                "reason": dropped.reason,
                "kind": dropped.kind,
            }
            if row.line is not None:
                record["line"] = row.line
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _check_recipe(output: Path, recipe: Recipe) -> None:
    """Write the recipe. Raises ValueError, with the differences, if there are checkpoints of another recipe."""
    path, text = output / RECIPE, as_yaml(recipe)
    if not has_checkpoints(output):
        path.write_text(text, encoding="utf-8")
        return
    before, now = _flat(yaml.safe_load(path.read_text(encoding="utf-8"))), _flat(yaml.safe_load(text))
    changed = [
        f"{key}: was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in FREE
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"{output} was started with another recipe:\n  {listed}\nGive the same again to resume, "
            "or name another output"
        )


def _flat(values: Any, before: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping) or not values:
        return {before: values}
    return {
        key: leaf
        for name, value in values.items()
        for key, leaf in _flat(value, f"{before}.{name}" if before else str(name)).items()
    }


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


logger = logging.getLogger(__name__)

SEAL = "sealed.json"
PREFIX = "checkpoint-"


def seal_checkpoint(folder: Path) -> None:
    """Sync the files of a checkpoint to disk, then write their sizes and hashes to `sealed.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    contents = {path.relative_to(folder).as_posix(): [path.stat().st_size, _file_hash(path)] for path in files}
    write_whole(folder / SEAL, json.dumps(contents).encode())


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if all files match `sealed.json`."""
    try:
        contents = json.loads((folder / SEAL).read_text())
    except (FileNotFoundError, ValueError):
        return "was not written completely"
    for name, (size, digest) in contents.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or _file_hash(path) != digest:
            return f"{name} is damaged"
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run; torn ones are renamed, with a warning."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True):
        wrong = find_damage(path)
        if wrong is None:
            return path
        logger.warning("%s is torn (%s): it is renamed to torn-…, and the previous checkpoint is used", path, wrong)
        aside = folder / f"torn-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
