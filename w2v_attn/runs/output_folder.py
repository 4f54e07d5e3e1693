"""The output folder of a run: one run at a time, and results of one configuration only."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.runs.locks import LOCK, InUseError, acquire_lock
from w2v_attn.runs.outcomes import Outcome, cannot_write
from w2v_attn.runs.rank import Block, clear_rank_dirs, other_rank_dirs, rows_of
from w2v_attn.runs.record import check_same, new_record, now, read_record, restore_record, update_record, write_record
from w2v_attn.runs.run_stats import RunStats
from w2v_attn.whole_files import temporary_name

logger = logging.getLogger(__name__)

# Seconds between two updates of the record.
RECORD_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run needs to acquire its output folder.

    Attributes:
        blocks: The blocks of the whole list.
        fingerprint: What determines the results; a folder holds results of one fingerprint.
        made_with: Versions and machine, which determine the last bits; a change is logged.
        batch_frames: Frames per batch, used by the first run in the folder.
        about: Further entries of `run.json`.
        prepare: Called while nobody writes to the folder. What it raises is raised by `acquire`.
        single_machine_reason: Why all ranks must run on one machine; None if they need not.
    """

    blocks: Sequence[Block]
    fingerprint: Mapping[str, str]
    made_with: Mapping[str, object]
    batch_frames: int
    about: Mapping[str, object]
    prepare: Callable[[], None]
    single_machine_reason: str | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows of the list."""
        return rows_of(self.blocks)


class RunFolder:
    """An output folder while a run holds it. Created by `acquire`, or by `shared_folder.acquire_shared`.

    Attributes:
        failures_dir: The folder of the run's failure log.
    """

    def __init__(self, output: Path, record: dict[str, Any], before: dict[str, Any] | None):
        self.failures_dir = output
        self._output, self._record, self._before = output, record, before
        self._place = FolderIdentity(output)
        self._stats = RunStats()
        self._started = self._updated = time.monotonic()

    @property
    def batch_frames(self) -> int:
        """Frames per batch, as in the folder's first run, so that a resumed run makes the same batches."""
        return self._record["batch_frames"]

    def count(self, outcome: Outcome[Any]) -> None:
        """Count an outcome; the record is updated once a minute."""
        self._stats.add(outcome)
        if time.monotonic() - self._updated > RECORD_SECONDS:
            self._update(self._write_progress)

    def rollback(self) -> None:
        """Restore `run.json` as it was before this run, which was refused."""
        restore_record(self._output, self._before)

    def conclude(self, status: str | None = None, reason: str | None = None) -> None:
        """Write how the run ended. If that fails, such as on a full disk, log it.

        Args:
            status: None for a run that came to its end or was interrupted.
            reason: Why the run ended early.
        """
        unreached = self._record["counts"]["recordings"] - self._stats.reached
        status = status or ("interrupted" if unreached else "done")
        self._record |= {"status": status, "reason": reason}
        self._record["session"]["ended"] = now()
        self._update(self._write)

    def _update(self, write: Callable[[dict[str, Any]], None]) -> None:
        update_record(self._record, self._stats, time.monotonic() - self._started)
        self._updated = time.monotonic()
        try:
            self._place.check()
            write(self._record)
        except (OSError, RunError) as error:
            logger.warning("how far the run is cannot be written to %s: %s", self._output, error)

    def _write_progress(self, record: dict[str, Any]) -> None:
        write_record(self._output, record)

    def _write(self, record: dict[str, Any]) -> None:
        write_record(self._output, record)


@contextmanager
def acquire(output: Path, spec: RunSpec) -> Iterator[RunFolder]:
    """Hold the output folder exclusively for a run. A folder that is refused is left as it was.

    Raises:
        ValueError: the folder cannot be written, is in use, or has another fingerprint.
        RunError: its disk is full or fails.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(output / LOCK)
    except InUseError as error:
        raise in_use_error(output, error) from None
    except OSError as error:
        raise cannot_write(output, error) from error
    try:
        before = read_record(output)
        if before is not None:
            check_same(output, before, spec.fingerprint, spec.made_with)
        record = new_record(before, spec, recordings=len(spec.rows))
        try:
            lock.write_holder(describe_process())
            spec.prepare()
            write_record(output, record)
            clear_rank_dirs(other_rank_dirs(output, world_size=1), output, spec.rows)
            folder = RunFolder(output, record, before)
        except OSError as error:
            raise cannot_write(output, error) from error
        yield folder
    finally:
        lock.release()


def in_use_error(output: Path, error: InUseError) -> ValueError:
    """Return what to raise if another run holds the folder."""
    return ValueError(f"{output} is in use by another run ({error}): wait for its end, or name another output")


def describe_process() -> str:
    """Return who this process is, to be written into a lock file."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {now()}\n"


class FolderIdentity:
    """The device and inode of a folder, to notice that its disk was unmounted and the path is another folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._found = self._find()

    def check(self) -> None:
        """Raise RunError if the folder is gone, or another folder is at its path."""
        try:
            found = self._find()
        except OSError as error:
            raise RunError(f"{self._folder} is gone: {error.strerror}") from error
        if found != self._found:
            raise RunError(f"{self._folder} is another folder than at the start: was its disk unmounted?")

    def _find(self) -> tuple[int, int]:
        found = self._folder.stat()
        return found.st_dev, found.st_ino


def check_case_collisions(output: Path, ids: Iterable[str]) -> None:
    """Check that no two results get the same file because their ids differ in case only.

    The disks of macOS and Windows, exFAT and many network drives do not distinguish `a` from `A`.

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
                f"{other} and {id} would get the same file: the disk of {output} does not distinguish upper from lower "
                "case: name an output on another disk, or give them other ids in a manifest"
            )


def _folds_case(folder: Path) -> bool:
    """Return whether the file system ignores case."""
    probe = temporary_name(folder / "probe")
    probe = probe.with_name(f"{probe.name[:-1]}a")  # a letter at least
    probe.touch()
    try:
        return probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()
