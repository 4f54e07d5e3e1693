"""`run.json`: how far a run is, and what its folder holds: of one configuration for good."""

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


def update_record(record: dict[str, Any], stats: RunStats, seconds: float) -> None:
    """Takes how far a run is into its record. seconds: since it began."""
    recordings = record["counts"]["recordings"]
    record["counts"] = {
        "recordings": recordings,
        **{name: getattr(stats, attribute) for name, attribute in _STATS.items()},
        "not_reached": recordings - stats.reached,
    }
    record["failures"] = dict(stats.kinds.most_common())
    record["underflow"] = {"values": stats.underflowed, "recordings": stats.underflowed_rows}
    record["session"] |= {"seconds": round(seconds, 3), "audio_seconds": round(stats.seconds, 3)}


class RunDescription(Protocol):
    """What a record says of a run that begins; see `folder.Claim`."""

    @property
    def fingerprint(self) -> Mapping[str, str]: ...

    @property
    def made_with(self) -> Mapping[str, object]: ...

    @property
    def batch_frames(self) -> int: ...

    @property
    def about(self) -> Mapping[str, object]: ...


def new_record(before: Mapping[str, Any] | None, run: RunDescription, *, recordings: int) -> dict[str, Any]:
    """The record of a run that begins. before: that of the run before it in this folder."""
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
    """Raises ValueError where the folder is of another fingerprint; other versions or another machine are told."""
    changed = _differences(before["fingerprint"], fingerprint)
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"{output} holds features of another configuration:\n  {listed}\n"
            "Give the same again to go on, or name another output"
        )
    changed = _differences(before["made_with"], made_with)
    if changed:
        logger.warning(
            "%s goes on with other versions or another machine (%s): features agree to rounding, not to the bit",
            output, "; ".join(changed),
        )  # fmt: skip


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = dict.fromkeys([*before, *now])
    return [
        f"{name}: was {before.get(name, 'not asked for')}, now {now.get(name, 'not asked for')}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def read_record(output: Path) -> dict[str, Any] | None:
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
        raise cannot_write(output, error) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): name another output; or remove it, if the features there are those of this "
            "command: each is checked"
        ) from error
    return record


def write_record(folder: Path, record: Mapping[str, object]) -> None:
    """Whole, or not at all. Raises OSError."""
    write_whole(folder / RUN, (json.dumps(record, indent=1) + "\n").encode())


def restore_record(folder: Path, before: Mapping[str, object] | None) -> None:
    """What was there before, where that can still be written; None: nothing was."""
    with suppress(OSError):
        if before is None:
            (folder / RUN).unlink(missing_ok=True)
        else:
            write_record(folder, before)


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


def now() -> str:
    """The time, as it is written down."""
    return datetime.now(UTC).isoformat(timespec="seconds")
