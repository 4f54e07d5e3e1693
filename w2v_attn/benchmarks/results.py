"""Figures with what is needed to judge them: where, when, and with which versions they were taken."""

import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from w2v_attn import __version__


def circumstances(device: torch.device) -> dict[str, Any]:
    """Date, versions and machine of a run."""
    import transformers

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "w2v_attn": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def check_destination(path: Path) -> None:
    """Raises ValueError where a report could not be written: before minutes of measuring, not after."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"output={path} cannot be written: {error.strerror or error}") from error
    if path.is_dir():
        raise ValueError(f"output={path} is a folder: name a .json file")


def write_json(report: dict[str, Any], path: Path) -> Path:
    """The report as a file; whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
