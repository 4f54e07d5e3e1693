"""Several processes, on one machine or many, that write to one folder, each the rows of its own share.

Nobody speaks to the others: each holds the folder's lock together with them, and keeps a record and a ledger at a desk
of its own. Whoever ends puts together what is known of all; so the last one does it for good, in whatever order they
begin and end, and whether or not some are killed and started again.
"""

import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from w2v_attn.runs.desks import DESKS, clear_desks, desk_of, desks_of_others, in_order
from w2v_attn.runs.folder import LOCK, Claim, RunFolder, holder, in_use
from w2v_attn.runs.ledger import read_lines, write_lines
from w2v_attn.runs.locks import InUseError, Lock, take
from w2v_attn.runs.place import cannot_write
from w2v_attn.runs.record import COUNTS, begun_record, check_same, read_record, write_record
from w2v_attn.runs.shares import Part, Share, rows_of


class SharedFolder(RunFolder):
    """A folder that others write to as well. Made by `joined`."""

    def __init__(
        self, output: Path, share: Share, parts: Sequence[Part], record: dict[str, Any], before: dict[str, Any] | None,
        lock: Lock,
    ):  # fmt: skip
        """before: the record of the run before this one. lock: the folder's."""
        super().__init__(output, record, before)
        self.ledger = desk_of(output, share)
        self._share, self._parts, self._lock = share, parts, lock

    def withdraw(self) -> None:
        """The run was refused: it leaves its desk, and `run.json` as it was, if nobody else is at work."""
        with suppress(OSError):
            with _one_at_a_time(self._output):
                shutil.rmtree(self.ledger)
                if self._lock.is_last():
                    super().withdraw()
            (self._output / DESKS).rmdir()  # not where others have theirs

    def _write_progress(self, record: dict[str, Any]) -> None:
        write_record(self.ledger, record)  # what all have done together is told where one ends

    def _write(self, record: dict[str, Any]) -> None:
        write_record(self.ledger, record)
        with _one_at_a_time(self._output):
            _put_together(self._output, self._share.world, self._parts, session=record["sessions"])


@contextmanager
def joined(output: Path, share: Share, claim: Claim) -> Iterator[RunFolder]:
    """Like `claimed`, together with those who have the other shares of the same rows.

    Raises:
        ValueError: as `claimed`; or the share is in use, or others are at work with another number of shares.
        RunError: its disk is full or fails.
    """
    try:
        (output / DESKS).mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(output):
            locks, folder = _join(output, share, claim)
    except BaseException as error:
        with suppress(OSError):
            (output / DESKS).rmdir()  # not where others have theirs
        if isinstance(error, InUseError):
            raise in_use(output, error) from None
        if isinstance(error, OSError):
            raise cannot_write(output, error) from error
        raise
    try:
        yield folder
    finally:
        with ExitStack() as alone:
            with suppress(OSError):  # the disk is gone, or this was refused
                # Who leaves last has the folder alone for a moment: nobody is to come meanwhile, and to be refused.
                alone.enter_context(_one_at_a_time(output))
            for lock in locks:
                lock.release()


def _join(output: Path, share: Share, claim: Claim) -> tuple[list[Lock], SharedFolder]:
    """The locks of the desk and of the folder, and the folder."""
    locks: list[Lock] = []
    try:
        lock, is_first = _enter(output)
        locks.append(lock)
        before = read_record(output)
        if before is not None:
            check_same(output, before, claim.fingerprint, claim.made_with)
        if is_first:
            clear_desks(desks_of_others(output, share.world), output, claim.rows)
            # Where there are no locks, whoever comes seems to be the first, and others may be at work.
            if lock.holds or before is None or before["status"] != "running":
                claim.prepare()
            lock.share()
        elif others := desks_of_others(output, share.world):
            raise InUseError(f"the share {others[0].name}, while this one is {share.rank}-of-{share.world}")
        elif claim.one_machine and before and (other := _on_another_machine(output, share.world, before)) is not None:
            raise ValueError(f"{other} writes to {output}: {claim.one_machine}")
        desk = desk_of(output, share)
        desk.mkdir(exist_ok=True)
        locks.insert(0, take(desk / LOCK))
        locks[0].say(holder())
        mine = _ids(share, claim.parts)
        lines = {**read_lines(output), **read_lines(desk)}
        write_lines(desk, [line for row_id, line in lines.items() if row_id in mine])
        record = begun_record(before, claim, recordings=len(mine)) | {"share": str(share)}
        if not is_first and before is not None:
            record["sessions"] = before["sessions"]  # the first one counted this one
        write_record(desk, record)
        if is_first:
            write_record(output, record | {"counts": {"recordings": len(claim.rows)}, "share": None})
        return locks, SharedFolder(output, share, claim.parts, record, before, lock)
    except BaseException:
        for lock in locks:
            lock.release()
        raise


def _enter(output: Path) -> tuple[Lock, bool]:
    """The folder's lock, and whether nobody else has it; then it is still held alone."""
    try:
        return take(output / LOCK), True
    except InUseError:
        return take(output / LOCK, shared=True), False


@contextmanager
def _one_at_a_time(output: Path) -> Iterator[None]:
    lock = take(output / DESKS / LOCK, wait=True)
    try:
        yield
    finally:
        lock.release()


def _ids(share: Share, parts: Sequence[Part]) -> set[str]:
    return {row.id for row in rows_of(share.of(parts))}


def _on_another_machine(output: Path, world: int, whole: dict[str, Any]) -> str | None:
    """Who has a share and is not on this machine. whole: the record of all; in a session before it some were killed."""
    for rank in range(world):
        record = read_record(desk_of(output, Share(rank, world)))
        if record is None or record["status"] != "running" or record["sessions"] != whole["sessions"]:
            continue
        if (host := record["session"]["host"]) != socket.gethostname():
            return host
    return None


def _put_together(output: Path, world: int, parts: Sequence[Part], session: int) -> None:
    """The ledger and the record of all, from those at the desks. session: the number of this one."""
    lines, records = read_lines(output), {}
    for rank in range(world):
        share = Share(rank, world)
        if (record := read_record(desk_of(output, share))) is not None:
            mine = _ids(share, parts)
            if _counts(record, len(mine), session):
                records[rank] = record
            lines = {row_id: line for row_id, line in lines.items() if row_id not in mine}
            lines |= {row_id: line for row_id, line in read_lines(desk_of(output, share)).items() if row_id in mine}
    rows = rows_of(parts)
    write_lines(output, in_order(lines, rows))
    write_record(output, _total(list(records.values()), world, len(rows)))


def _counts(record: dict[str, Any], recordings: int, session: int) -> bool:
    """Whether a record says how far a share is: not that of another list, nor of one that is to be started again."""
    ended_early = record["status"] != "done" and record["sessions"] < session
    return record["counts"]["recordings"] == recordings and not ended_early


def _total(records: Sequence[dict[str, Any]], world: int, recordings: int) -> dict[str, Any]:
    """One record of those of the shares, of which some may not have begun."""
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    underflow: Counter[str] = Counter({"values": 0, "recordings": 0})
    for record in records:
        counts.update({name: record["counts"].get(name, 0) for name in COUNTS})
        kinds.update(record.get("failures", {}))
        underflow.update(record.get("underflow", {}))
    found = {record["status"] for record in records}
    worst = [status for status in ("running", "stopped", "interrupted", "done") if status in found]
    sessions = [record["session"] for record in records]
    return records[0] | {
        "status": "running" if len(records) < world else worst[0],
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
        "failures": dict(kinds.most_common()),
        "underflow": dict(underflow),
        "share": f"{len(records)} of {world}",
    }
