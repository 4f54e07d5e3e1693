"""Checkpoints of a run that can be trusted: one counts only when it was written to its end, and is as it was written.

Trainer writes the files of a checkpoint one after the other and later takes the newest folder, whatever is in it. Here
a seal with the size and hash of every file is written last; a folder without it, or other than it says, is torn.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

SEAL = "sealed.json"
PREFIX = "checkpoint-"


def seal(folder: Path) -> None:
    """Makes sure that the files of a checkpoint are on the disk, then says so in a file of its own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    contents = {path.relative_to(folder).as_posix(): [path.stat().st_size, _hash(path)] for path in files}
    temporary = folder / f".{SEAL}"
    with temporary.open("w") as file:
        json.dump(contents, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / SEAL)


def flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is as it was sealed."""
    try:
        contents = json.loads((folder / SEAL).read_text())
    except (FileNotFoundError, ValueError):
        return "was not written to its end"
    for name, (size, digest) in contents.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or _hash(path) != digest:
            return f"{name} is damaged"
    return None


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run. Torn ones are put aside, with a warning."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True):
        wrong = flaw(path)
        if wrong is None:
            return path
        logger.warning("%s is torn (%s): it is put aside, the one before is taken", path, wrong)
        aside = folder / f"torn-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
