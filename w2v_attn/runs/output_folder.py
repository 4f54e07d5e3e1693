"""The folder of a run: one run at a time, one configuration for good."""

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
from w2v_attn.runs.locks import InUseError, acquire_lock
from w2v_attn.runs.outcomes import Outcome, cannot_write
from w2v_attn.runs.rank import Block, clear_rank_dirs, other_rank_dirs, rows_of
from w2v_attn.runs.record import check_same, new_record, now, read_record, restore_record, update_record, write_record
from w2v_attn.runs.run_stats import RunStats
from w2v_attn.whole_files import temporary_name

logger = logging.getLogger(__name__)

LOCK = ".lock"
# Seconds after which a record says anew how far the run is.
RECORD_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run claims a folder for.

    blocks: those of the whole list. fingerprint: what decides what the results are; a folder is_effective those of one.
    made_with: versions and machine, which decide their last bits; others are told. batch_frames: of a batch, for the
    first run in the folder. about: more for `run.json`. prepare: called while nobody writes. single_machine_reason: why all
    ranks must be on one machine; None: they need not be.

    Raises:
        ValueError, RunError, OSError: what `prepare` raises ends the spec.
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
        """All of the list."""
        return rows_of(self.blocks)


class RunFolder:
    """A folder while a run has it. Made by `acquire`, or by `shared_folder.joined`.

    ledger: the folder in which the run keeps its failures.
    """

    def __init__(self, output: Path, record: dict[str, Any], before: dict[str, Any] | None):
        self.failures_dir = output
        self._output, self._record, self._before = output, record, before
        self._place = FolderIdentity(output)
        self._stats = RunStats()
        self._started = self._updated = time.monotonic()

    @property
    def batch_frames(self) -> int:
        """Frames of a batch: those that the folder's first run had, so that batches are the same ones."""
        return self._record["batch_frames"]

    def count(self, outcome: Outcome[Any]) -> None:
        """Takes an outcome into the counts; the record has them after a minute at most."""
        self._stats.add(outcome)
        if time.monotonic() - self._updated > RECORD_SECONDS:
            self._update(self._write_progress)

    def rollback(self) -> None:
        """The run was refused: `run.json` is what it was before it."""
        restore_record(self._output, self._before)

    def conclude(self, status: str | None = None, reason: str | None = None) -> None:
        """Writes down how the run ended; what cannot be written then (the disk is full) is said in the log.

        status: None: it came to its end, or was interrupted.
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
    """The folder is this run's alone while it runs, and of its fingerprint for good. Refused, it is as it was before.

    Raises:
        ValueError: the folder cannot be written, is in use, or is of another fingerprint.
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
    """What to raise where another run has the folder."""
    return ValueError(f"{output} is in use by another run ({error}): wait for its end, or name another output")


def describe_process() -> str:
    """Who this is, for those who find a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {now()}\n"


class FolderIdentity:
    """Which folder stands under a name."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._found = self._find()

    def check(self) -> None:
        """Raises RunError where it is not the one it was: its disk is gone, and another folder shows."""
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
