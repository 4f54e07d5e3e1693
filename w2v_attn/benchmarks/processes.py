"""Commands as processes: how long they take from start to end, and the most memory they hold."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.02


def seconds_of(command: Sequence[str]) -> float:
    """Wall time of a command, from before its start until after its end.

    Raises:
        ValueError: it failed; the end of what it said.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.communicate()[1]
    taken = time.perf_counter() - start
    _check(command, process.returncode, said)
    return taken


def peak_bytes_of(command: Sequence[str]) -> int | None:
    """The most memory that a command holds; None where the system does not tell.

    Linux keeps the mark with the process's memory. What it reports of children at their end has their parent's in it.

    Raises:
        ValueError: it failed; the end of what it said.
    """
    peak = None
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        peak = _high_water(process.pid) or peak
        time.sleep(POLL_SECONDS)
    assert process.stderr is not None
    _check(command, process.returncode, process.stderr.read())
    return peak


def _environment() -> dict[str, str]:
    """This process's, with this package in it wherever it is, as many threads as here, and no network."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}


def _check(command: Sequence[str], code: int, said: bytes) -> None:
    if code != 0:
        end = said.decode(errors="replace").strip()[-500:]
        raise ValueError(f"{' '.join(command).replace(sys.executable, 'python')} ended with code {code}: {end}")


def _high_water(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return None
