"""`run.json`: the progress of a run, and the configuration of the results in its folder."""

import json
import logging
import os
import platform
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from w2v_attn.runs.outcomes import cannot_write
from w2v_attn.runs.run_stats import RunStats
from w2v_attn.whole_files import write_whole

logger = logging.getLogger(__name__)

RUN = "run.json"
FORMAT = "w2v_attn.run/1"
# Key of run.json -> attribute of RunStats.
_STATS = {"written": "written", "kept": "cached", "failed": "failed"}
COUNTS = tuple(_STATS)
# Further keys, whose values count something by name.
COUNTED = ("failures", "failure_kinds", "flags", "conversions")


def update_record(record: dict[str, Any], stats: RunStats, seconds: float) -> None:
    """Update a record with the statistics of the run. seconds: since its start."""
    recordings = record["counts"]["recordings"]
    record["counts"] = {
        "recordings": recordings,
        **{name: getattr(stats, attribute) for name, attribute in _STATS.items()},
        "not_reached": recordings - stats.reached,
    }
    record["failures"] = dict(stats.kinds.most_common())
    record["failure_kinds"] = dict(stats.failure_kinds.most_common())
    record["flags"] = dict(stats.flags.most_common())
    record["conversions"] = dict(stats.conversions.most_common())
    record["underflow"] = {"values": stats.underflowed, "recordings": stats.underflowed_rows}
    record["session"] |= {"seconds": round(seconds, 3), "audio_seconds": round(stats.seconds, 3)}


class RunDescription(Protocol):
    """What a record states about a run that starts; see `output_folder.RunSpec`."""

    @property
    def fingerprint(self) -> Mapping[str, str]: ...

    @property
    def made_with(self) -> Mapping[str, object]: ...

    @property
    def batch_frames(self) -> int: ...

    @property
    def about(self) -> Mapping[str, object]: ...


def new_record(before: Mapping[str, Any] | None, run: RunDescription, *, recordings: int) -> dict[str, Any]:
    """Return the record of a run that starts.

    Args:
        before: The record of the previous run in this folder.
        run: The run.
        recordings: How many rows it has.
    """
    return {
        "format": FORMAT,
        "status": "running",
        "reason": None,
        "begun": before["begun"] if before else now(),
        "sessions": before["sessions"] + 1 if before else 1,
        "session": {"started": now(), "host": socket.gethostname(), "pid": os.getpid()},
        "counts": {"recordings": recordings},
        "fingerprint": dict(run.fingerprint),
        "batch_frames": before["batch_frames"] if before else run.batch_frames,
        "made_with": dict(run.made_with),
        **run.about,
    }


def check_same(
    output: Path, before: Mapping[str, Any], fingerprint: Mapping[str, str], made_with: Mapping[str, object]
) -> None:
    """Raise ValueError if the folder has another fingerprint; log a change of versions or machine."""
    old, new = dict(before["fingerprint"]), dict(fingerprint)
    if old.get("dtype") != new.get("dtype"):  # the checksum is that of the weights in this dtype: it says nothing more
        old.pop("checkpoint", None)
        new.pop("checkpoint", None)
    changed = _differences(old, new)
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"{output} holds {_kind_of(before)} of another configuration:\n  {listed}\n"
            "Give the same configuration to resume it, or name another output"
        )
    changed = _differences(before["made_with"], made_with)
    if changed:
        logger.warning(
            "%s is resumed with other versions or another machine (%s): results agree up to rounding, not to the bit",
            output, "; ".join(changed),
        )  # fmt: skip


def _kind_of(record: Mapping[str, Any]) -> str:
    """Return what the folder of a record holds, such as features: w2v_attn.features/1 is their format."""
    return str(record["fingerprint"].get("format", "")).partition(".")[2].partition("/")[0] or "results"


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = dict.fromkeys([*before, *now])
    absent = {"channel": "mean"}  # what a fingerprint without the entry stands for
    return [
        f"{name}: was {before.get(name, absent.get(name, 'not asked for'))}, "
        f"now {now.get(name, absent.get(name, 'not asked for'))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def read_record(output: Path) -> dict[str, Any] | None:
    """Return the record of the previous run, or None if there was none.

    Raises:
        ValueError: the record is damaged, has another format, or cannot be read.
        RunError: the disk fails.
    """
    path = output / RUN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"{path} has the format {record['format']}, expected {FORMAT}: name another output")
        needed = {"status", "begun", "sessions", "fingerprint", "batch_frames", "made_with"}
        if missing := needed - record.keys():
            raise KeyError(*sorted(missing))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_write(output, error) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): name another output; or remove it if the results there are from this "
            "command: each one is checked"
        ) from error
    return record


def write_record(folder: Path, record: Mapping[str, object]) -> None:
    """Write a record atomically. Raises OSError."""
    write_whole(folder / RUN, (json.dumps(record, indent=1) + "\n").encode())


def restore_record(folder: Path, before: Mapping[str, object] | None) -> None:
    """Write the previous record again, or remove the record if there was none; do nothing if the disk fails."""
    with suppress(OSError):
        if before is None:
            (folder / RUN).unlink(missing_ok=True)
        else:
            write_record(folder, before)


def made_with() -> dict[str, object]:
    """Return the versions and the machine of this process."""
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


def now() -> str:
    """Return the current time as it is written in records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
