"""Measurement of time, peak memory and the rate of matrix products, of calls and of commands in a subprocess."""

import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Parameters of mallopt: when memory is returned to the system, and how many large blocks have mappings of their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
PACKAGE = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.02
# The size of matrix products for `product_rates`: half a minute of frames; a square that fills a GPU.
ROWS, GPU_SIZE = 1500, 8192


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of one call in seconds, with the queue of the device empty before and after."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak memory of one call beyond what is in use before it; None where the system does not report it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if not _linux():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5")  # sets the high-water mark to what is resident now
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


@contextmanager
def float32_is_float32() -> Iterator[None]:
    """Disable the rounding of factors to tf32 in convolutions on GPUs, which is on by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def steady_allocator() -> Iterator[None]:
    """Keep freed memory in the process, so that all timed calls have the same conditions.

    The first access to a page costs microseconds, and whether glibc has returned it to the system depends on the
    previous calls: in interleaved rounds that would distort the times.
    """
    libc = ctypes.CDLL(None) if _linux() else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        if libc is not None and hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_MAX, 65536)
            libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024)


def available_bytes(device: torch.device) -> int:
    """Return the memory that a call can take now, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30


def seconds_of(command: Sequence[str]) -> float:
    """Return the wall time of a command in seconds, from before its start until after its end.

    Raises:
        ValueError: it failed; the message has the end of its error output.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.communicate()[1]
    taken = time.perf_counter() - start
    _check(command, process.returncode, said)
    return taken


def peak_bytes_of(command: Sequence[str]) -> int | None:
    """Return the peak memory of a command in bytes; None where the system does not report it.

    It is polled while the command runs: the figure that Linux reports for a child at its end includes the parent.

    Raises:
        ValueError: it failed; the message has the end of its error output.
    """
    peak = None
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        peak = _high_water(process.pid) or peak
        time.sleep(POLL_SECONDS)
    assert process.stderr is not None
    _check(command, process.returncode, process.stderr.read())
    return peak


def product_rates(config: Any, dtype: torch.dtype, device: torch.device, *, repeats: int = 9) -> dict[str, float]:
    """Return the rates of matrix products in GFLOP/s, as a dictionary from implementation to median rate.

    They are the upper limit of an encoder's speed. On a CPU the product is half a minute of frames times the first
    weight of the feed-forward, on a GPU a large square.
    """
    rows, inner, outer = ROWS, config.hidden_size, config.intermediate_size
    if device.type == "cuda":
        rows = inner = outer = GPU_SIZE
    x = torch.randn(rows, inner, device=device).to(dtype)
    weight = (torch.randn(outer, inner, device=device) / inner**0.5).to(dtype)
    rates = {}
    with torch.no_grad():
        for name, product in _products(x, weight):
            product()
            taken = statistics.median(seconds(product, device) for _ in range(repeats))
            rates[name] = 2e-9 * rows * inner * outer / taken
    return rates


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _linux() -> bool:
    return sys.platform == "linux" and CLEAR_REFS.exists()


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _environment() -> dict[str, str]:
    """Return the environment of commands: with this package, as many threads as here, and no network."""
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


def _products(x: Tensor, weight: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    if x.device.type == "cuda":
        yield "torch.mm", lambda: torch.mm(x, weight)
        return
    yield "F.linear", lambda: F.linear(x, weight)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, AttributeError):  # a torch without oneDNN, or a processor without this dtype
        return
    yield "oneDNN, prepacked weight", lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
