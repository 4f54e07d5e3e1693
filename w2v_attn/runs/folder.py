"""The folder of a run: one run at a time, one configuration for good, and `run.json`, which says how far it is."""

import errno
import fcntl
import json
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from w2v_attn.runs.outcomes import FATAL_ERRORS, Outcome, RunError
from w2v_attn.runs.tally import Tally
from w2v_attn.whole_files import write_whole

logger = logging.getLogger(__name__)

RUN, LOCK = "run.json", ".lock"
FORMAT = "w2v_attn.run/1"
# Seconds after which `run.json` says anew how far it is.
FRESH = 60.0
# File systems that have no locks: some FUSE and cluster file systems, NFS whose lock service does not run.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})


class RunFolder:
    """A folder that is this run's alone. Made by `claimed`.

    left_over: whether a run before this one may have left files behind that are not whole: it did not end in order.
    """

    def __init__(self, output: Path, record: dict[str, Any], before: dict[str, Any] | None, *, left_over: bool):
        self.left_over = left_over
        self._output, self._record, self._before = output, record, before
        self._place = _place(output)
        self._tally = Tally()
        self._started = self._told = time.monotonic()

    @property
    def batch_frames(self) -> int:
        """Frames of a batch: those that the folder's first run had, so that batches are the same ones."""
        return self._record["batch_frames"]

    def check_there(self) -> None:
        """Raises RunError where the folder is not the one it was: its disk is gone, and another folder shows."""
        try:
            found = _place(self._output)
        except OSError as error:
            raise RunError(f"{self._output} is gone: {error.strerror}") from error
        if found != self._place:
            raise RunError(f"{self._output} is another folder than at the start: was its disk unmounted?")

    def count(self, outcome: Outcome[Any]) -> None:
        """Takes an outcome into the counts; `run.json` has them after a minute at most."""
        self._tally.take(outcome)
        if time.monotonic() - self._told > FRESH:
            self._tell()

    def withdraw(self) -> None:
        """The run was refused: `run.json` is what it was before it."""
        with suppress(OSError):
            if self._before is None:
                (self._output / RUN).unlink(missing_ok=True)
            else:
                _write(self._output, self._before)

    def conclude(self, status: str, reason: str | None = None) -> None:
        """Writes down how the run ended; what cannot be written then (the disk is full) is said in the log."""
        self._record |= {"status": status, "reason": reason}
        self._record["session"]["ended"] = _now()
        self._tell()

    def _tell(self) -> None:
        tally, total = self._tally, self._record["counts"]["recordings"]
        seconds = round(time.monotonic() - self._started, 3)
        self._record["counts"] = {
            "recordings": total,
            "written": tally.written,
            "kept": tally.kept,
            "failed": tally.failed,
            "not_reached": total - tally.reached,
        }
        self._record["failures"] = dict(tally.kinds.most_common())
        self._record["session"] |= {"seconds": seconds, "audio_seconds": round(tally.seconds, 3)}
        self._told = time.monotonic()
        try:
            self.check_there()
            _write(self._output, self._record)
        except (OSError, RunError) as error:
            logger.warning("%s cannot be brought up to date: %s", self._output / RUN, error)


@contextmanager
def claimed(
    output: Path,
    *,
    fingerprint: Mapping[str, str],
    made_with: Mapping[str, object],
    batch_frames: int,
    recordings: int,
    about: Mapping[str, object],
) -> Iterator[RunFolder]:
    """The folder is this run's alone while it runs, and of this fingerprint for good. Refused, it is as it was before.

    fingerprint: what decides what the features are; another one is refused. made_with: versions and machine, which
    decide their last bits; others are told. batch_frames: of the first run in this folder. about: more for `run.json`.

    The lock is the kernel's, on an open file: it ends with the process that holds it, however that ends. Over NFS it
    holds between machines too (Linux takes it to the server), unless the mount says `nolock` or `local_lock`.

    Raises:
        ValueError: the folder cannot be written, is in use, or is of another fingerprint.
        RunError: its disk is full or fails.
    """
    try:
        was_there = output.is_dir()
        output.mkdir(parents=True, exist_ok=True)
        lock = _locked(output)
    except OSError as error:
        raise _cannot_write(output, error) from error
    try:
        before = _read(output)
        if before is not None:
            _check_fingerprint(output, before, fingerprint)
            _tell_other_machine(output, before, made_with)
        record = {
            "format": FORMAT,
            "status": "running",
            "reason": None,
            "begun": before["begun"] if before else _now(),
            "sessions": before["sessions"] + 1 if before else 1,
            "session": {"started": _now(), "host": socket.gethostname(), "pid": os.getpid()},
            "counts": {"recordings": recordings},
            "fingerprint": dict(fingerprint),
            "batch_frames": before["batch_frames"] if before else batch_frames,
            "made_with": dict(made_with),
            **about,
        }
        try:
            _write(output, record)
            in_order = before["status"] != "running" if before else not was_there
            folder = RunFolder(output, record, before, left_over=not in_order)
        except OSError as error:
            raise _cannot_write(output, error) from error
        yield folder
    finally:
        _release(output, lock)


def made_with() -> dict[str, object]:
    """Versions and machine of this process."""
    import torch
    import transformers

    from w2v_attn import __version__

    return {
        "w2v_attn": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _locked(output: Path) -> int:
    """A descriptor that holds the folder's lock. Raises ValueError where another process does."""
    path = output / LOCK
    while True:
        # Open for writing, for NFS gives no exclusive lock on a file that is read.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise ValueError(
                f"{output} is in use by another run ({holder or 'it has just begun'}): wait for its end, or name "
                "another output"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            logger.warning("%s cannot be locked (%s): see that no second run writes there", output, error.strerror)
        try:
            ours = os.fstat(descriptor)
            if os.path.samestat(ours, path.stat()):
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder has just ended, and removed it
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {_now()}\n".encode())
    except OSError:
        _release(output, descriptor)
        raise
    return descriptor


def _release(output: Path, descriptor: int) -> None:
    """Removed while it is held: whoever has opened it finds that it is no longer the one in the folder."""
    with suppress(OSError):  # the disk is gone or read-only; the lock itself ends with the descriptor
        (output / LOCK).unlink(missing_ok=True)
    os.close(descriptor)


def check_same(output: Path, fingerprint: Mapping[str, str]) -> None:
    """Raises ValueError where the folder is of another fingerprint, or its record is damaged. Writes nothing."""
    before = _read(output)
    if before is not None:
        _check_fingerprint(output, before, fingerprint)


def _check_fingerprint(output: Path, before: Mapping[str, Any], fingerprint: Mapping[str, str]) -> None:
    changed = _differences(before["fingerprint"], fingerprint)
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"{output} holds features of another configuration:\n  {listed}\n"
            "Give the same again to go on, or name another output"
        )


def _tell_other_machine(output: Path, before: Mapping[str, Any], made_with: Mapping[str, object]) -> None:
    changed = _differences(before["made_with"], made_with)
    if changed:
        logger.warning(
            "%s goes on with other versions or another machine (%s): features agree to rounding, not to the bit",
            output, "; ".join(changed),
        )  # fmt: skip


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = dict.fromkeys([*before, *now])
    return [
        f"{name}: was {before.get(name)}, now {now.get(name)}" for name in names if before.get(name) != now.get(name)
    ]


def _read(output: Path) -> dict[str, Any] | None:
    """The record of the run before this one; None: there was none."""
    path = output / RUN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"{path} is of the form {record['format']}, expected {FORMAT}: name another output")
        needed = {"status", "begun", "sessions", "fingerprint", "batch_frames", "made_with"}
        if missing := needed - record.keys():
            raise KeyError(*sorted(missing))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_write(output, error) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): name another output; or remove it, if the features there are those of this "
            "command: each is checked"
        ) from error
    return record


def _write(output: Path, record: Mapping[str, object]) -> None:
    write_whole(output / RUN, (json.dumps(record, indent=1) + "\n").encode())


def _cannot_write(output: Path, error: OSError) -> Exception:
    """The request is wrong where it names a folder that cannot be written; a full disk can be mended."""
    text = f"cannot write to {output}: {error.strerror or error}"
    wrong = error.errno in (errno.EROFS, errno.ENOTDIR) or error.errno not in FATAL_ERRORS
    return ValueError(f"{text}. Name another output") if wrong else RunError(text)


def _place(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
