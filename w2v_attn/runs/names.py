"""Results whose names are one name to the disk that they are written to."""

from collections.abc import Iterable
from pathlib import Path

from w2v_attn.runs.outcomes import RunError
from w2v_attn.whole_files import temporary_name


def check_names(output: Path, ids: Iterable[str]) -> None:
    """Sees to it that no two results would be one file: that of two ids which differ in case alone.

    The disks of macOS and Windows do not tell a from A, nor do exFAT and many network drives.

    Raises:
        ValueError: there are two such ids, and the folder is on such a disk.
        RunError: the folder cannot be written.
    """
    try:
        if not _folds_case(output):
            return
    except OSError as error:
        raise RunError(f"cannot write to {output}: {error.strerror}") from error
    seen: dict[str, str] = {}
    for id in ids:
        other = seen.setdefault(id.casefold(), id)
        if other != id:
            raise ValueError(
                f"{other} and {id} would be one file, for the disk of {output} does not tell capitals from small "
                "letters: name an output on another disk, or give them other ids in a manifest"
            )


def _folds_case(folder: Path) -> bool:
    """Whether a file is found there under its name in capitals too."""
    probe = temporary_name(folder / "probe")
    probe = probe.with_name(f"{probe.name[:-1]}a")  # a letter at least
    probe.touch()
    try:
        return probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()
