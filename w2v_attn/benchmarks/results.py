"""Figures with what is needed to judge them: where, when, and with which versions they were taken."""

import json
import os
import platform
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
