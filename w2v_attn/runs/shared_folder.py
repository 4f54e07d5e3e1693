"""An output folder that several ranks share, on one machine or many; each writes its own rows.

Ranks do not communicate. All hold the folder's lock, shared, and each keeps a record and a failure log in a folder of
its own. A rank that ends merges what all have written so far, so the last one completes the folder, in whatever order
they start and end, and whether or not some are killed and restarted.
"""

import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from w2v_attn.runs.failure_log import read_failures, write_failures
from w2v_attn.runs.locks import LOCK, InUseError, Lock, acquire_lock
from w2v_attn.runs.outcomes import cannot_write
from w2v_attn.runs.output_folder import RunFolder, RunSpec, describe_process, in_use_error
from w2v_attn.runs.rank import RANKS, Block, Rank, clear_rank_dirs, in_order, other_rank_dirs, rank_dir, rows_of
from w2v_attn.runs.record import COUNTED, COUNTS, check_same, new_record, read_record, write_record


class SharedFolder(RunFolder):
    """An output folder that other ranks write to as well. Created by `acquire_shared`."""

    def __init__(
        self, output: Path, rank: Rank, blocks: Sequence[Block], record: dict[str, Any], before: dict[str, Any] | None,
        lock: Lock,
    ):  # fmt: skip
        """before: the record of the previous run. lock: the lock of the folder."""
        super().__init__(output, record, before)
        self.failures_dir = rank_dir(output, rank)
        self._rank, self._blocks, self._lock = rank, blocks, lock

    def rollback(self) -> None:
        """Remove the rank's own folder, and restore `run.json` if no other rank is running: the run was refused."""
        with suppress(OSError):
            with _one_at_a_time(self._output):
                shutil.rmtree(self.failures_dir)
                if self._lock.is_last():
                    super().rollback()
            (self._output / RANKS).rmdir()  # fails if other ranks have their folders there

    def _write_progress(self, record: dict[str, Any]) -> None:
        write_record(self.failures_dir, record)  # the total is written when a rank ends

    def _write(self, record: dict[str, Any]) -> None:
        write_record(self.failures_dir, record)
        with _one_at_a_time(self._output):
            _merge(self._output, self._rank.world_size, self._blocks, session=record["sessions"])


@contextmanager
def acquire_shared(output: Path, rank: Rank, spec: RunSpec) -> Iterator[RunFolder]:
    """Hold an output folder for one of several ranks that process the same rows; see `acquire`.

    Raises:
        ValueError: as `acquire`; or the rank is in use, or other ranks have another world size.
        RunError: the disk is full or fails.
    """
    try:
        (output / RANKS).mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(output):
            locks, folder = _join(output, rank, spec)
    except BaseException as error:
        with suppress(OSError):
            (output / RANKS).rmdir()  # fails if other ranks have their folders there
        if isinstance(error, InUseError):
            raise in_use_error(output, error) from None
        if isinstance(error, OSError):
            raise cannot_write(output, error) from error
        raise
    try:
        yield folder
    finally:
        with ExitStack() as alone:
            with suppress(OSError):  # the disk is gone, or the run was refused
                # The last rank to leave holds the folder exclusively for a moment; a rank that starts then must wait
                # and not be refused.
                alone.enter_context(_one_at_a_time(output))
            for lock in locks:
                lock.release()


def _join(output: Path, rank: Rank, spec: RunSpec) -> tuple[list[Lock], SharedFolder]:
    """Return the locks of the rank's folder and of the shared folder, and the folder."""
    locks: list[Lock] = []
    try:
        lock, is_first = _enter(output)
        locks.append(lock)
        before = read_record(output)
        if before is not None:
            check_same(output, before, spec.fingerprint, spec.made_with)
        if is_first:
            clear_rank_dirs(other_rank_dirs(output, rank.world_size), output, spec.rows)
            # Without effective locks every rank seems to be the first, while others may be running.
            if lock.is_effective or before is None or before["status"] != "running":
                spec.prepare()
            lock.downgrade()
        elif others := other_rank_dirs(output, rank.world_size):
            raise InUseError(f"rank {others[0].name}, while this one is {rank.rank}-of-{rank.world_size}")
        elif (
            spec.single_machine_reason
            and before
            and (other := _on_another_machine(output, rank.world_size, before)) is not None
        ):
            raise ValueError(f"{other} writes to {output}: {spec.single_machine_reason}")
        own = rank_dir(output, rank)
        own.mkdir(exist_ok=True)
        locks.insert(0, acquire_lock(own / LOCK))
        locks[0].write_holder(describe_process())
        mine = _ids(rank, spec.blocks)
        lines = {**read_failures(output), **read_failures(own)}
        write_failures(own, [line for row_id, line in lines.items() if row_id in mine])
        record = new_record(before, spec, recordings=len(mine))
        record |= {"rank": rank.rank, "world_size": rank.world_size}
        if not is_first and before is not None:
            record["sessions"] = before["sessions"]  # the first rank counted this session
        write_record(own, record)
        if is_first:
            write_record(output, record | {"counts": {"recordings": len(spec.rows)}, "rank": None})
        return locks, SharedFolder(output, rank, spec.blocks, record, before, lock)
    except BaseException:
        for lock in locks:
            lock.release()
        raise


def _enter(output: Path) -> tuple[Lock, bool]:
    """Return the folder's lock, and whether it is held exclusively because no other rank is running."""
    try:
        return acquire_lock(output / LOCK), True
    except InUseError:
        return acquire_lock(output / LOCK, shared=True), False


@contextmanager
def _one_at_a_time(output: Path) -> Iterator[None]:
    lock = acquire_lock(output / RANKS / LOCK, wait=True)
    try:
        yield
    finally:
        lock.release()


def _ids(rank: Rank, blocks: Sequence[Block]) -> set[str]:
    return {row.id for row in rows_of(rank.select(blocks))}


def _on_another_machine(output: Path, world_size: int, whole: dict[str, Any]) -> str | None:
    """Return the host of a rank that runs on another machine, else None.

    Args:
        whole: The record of all ranks. Ranks of earlier sessions that seem to run were killed.
    """
    for number in range(world_size):
        record = read_record(rank_dir(output, Rank(number, world_size)))
        if record is None or record["status"] != "running" or record["sessions"] != whole["sessions"]:
            continue
        if (host := record["session"]["host"]) != socket.gethostname():
            return host
    return None


def _merge(output: Path, world_size: int, blocks: Sequence[Block], session: int) -> None:
    """Write the failure log and the record of all ranks, from those of each. session: the number of this session."""
    lines, records = read_failures(output), {}
    for number in range(world_size):
        rank = Rank(number, world_size)
        if (record := read_record(rank_dir(output, rank))) is not None:
            mine = _ids(rank, blocks)
            if _counts(record, len(mine), session):
                records[number] = record
            lines = {row_id: line for row_id, line in lines.items() if row_id not in mine}
            lines |= {row_id: line for row_id, line in read_failures(rank_dir(output, rank)).items() if row_id in mine}
    rows = rows_of(blocks)
    write_failures(output, in_order(lines, rows))
    write_record(output, _total(list(records.values()), world_size, len(rows)))


def _counts(record: dict[str, Any], recordings: int, session: int) -> bool:
    """Return whether a record counts: it is of this list, and its rank is not one to be restarted."""
    ended_early = record["status"] != "done" and record["sessions"] < session
    return record["counts"]["recordings"] == recordings and not ended_early


def _total(records: Sequence[dict[str, Any]], world_size: int, recordings: int) -> dict[str, Any]:
    """Return the record of all ranks from those of the ranks that have started."""
    counts: Counter[str] = Counter()
    counted: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    underflow: Counter[str] = Counter({"values": 0, "recordings": 0})
    for record in records:
        counts.update({name: record["counts"].get(name, 0) for name in COUNTS})
        for name, counter in counted.items():
            counter.update(record.get(name, {}))
        underflow.update(record.get("underflow", {}))
    found = {record["status"] for record in records}
    worst = [status for status in ("running", "stopped", "interrupted", "done") if status in found]
    sessions = [record["session"] for record in records]
    return records[0] | {
        "status": "running" if len(records) < world_size else worst[0],
        "reason": next((record["reason"] for record in records if record["reason"]), None),
        "sessions": max(record["sessions"] for record in records),
        "session": {
            "started": min(session["started"] for session in sessions),
            "ended": max(session.get("ended", "") for session in sessions),
            "host": ", ".join(sorted({session["host"] for session in sessions})),
            "seconds": max(session.get("seconds", 0.0) for session in sessions),
            "audio_seconds": round(sum(session.get("audio_seconds", 0.0) for session in sessions), 3),
        },
        "counts": {
            "recordings": recordings,
            **{name: counts[name] for name in COUNTS},
            "not_reached": recordings - counts.total(),
        },
        **{name: dict(counter.most_common()) for name, counter in counted.items()},
        "underflow": dict(underflow),
        "rank": None,
        "ranks_begun": len(records),
    }
