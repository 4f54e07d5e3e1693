"""Memory that this process may come to use: of the machine, or of the container it is in."""

import os
from pathlib import Path

# Where Linux says what a container may have, in both versions of control groups.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def most_bytes() -> int | None:
    """The whole, used or not, so that it is the same at each run; None where nobody says."""
    known = [limit for path in LIMITS if (limit := _limit(path)) is not None]
    if hasattr(os, "sysconf"):  # not on Windows
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(known, default=None)


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or the word "max"
        return None
