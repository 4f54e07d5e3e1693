"""Time and peak memory of a call."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# mallopt's names for: give memory back to the system, use mappings of their own for large blocks.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, with the device's queue empty before and after."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that one call takes beyond what is held before it; None where the system does not tell."""
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
    """While open, no convolution on a GPU rounds its factors to tf32, as they do there unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def steady_allocator() -> Iterator[None]:
    """While open, freed memory stays with the process, for all that is timed alike.

    A page that is touched for the first time costs microseconds, and whether glibc had just given it back depends on
    what ran before: in an interleaved run that would time the neighbours.
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
    """Memory that a call may take now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _linux() -> bool:
    return sys.platform == "linux" and CLEAR_REFS.exists()


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
