"""Batching and threading on a CPU: recordings are grouped into packs, and packs run in parallel threads.

A worker is a thread with cores of its own. The matrix products of a pack reach the full rate of a core on one core; on
several cores, all of them wait for the slowest after every step, a few hundred times a second. So several packs go
through the model in parallel, and the cores synchronise only at the end. Where the packs cannot be of similar size,
because one recording is much longer than the others, that recording takes all cores.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import ceil
from typing import TypeVar

import torch

Result = TypeVar("Result")
# Indices of the recordings that run as one packed tensor.
Pack = list[int]

# More workers than this wait for Python's lock; each has several cores then.
MAX_WORKERS = 16
# The slowdown of several cores on one pack, because they wait for each other. Workers that would be idle for longer
# than that at the end are not worth it.
MAX_IMBALANCE = 1.06
# How many times smaller the last packs are: still large enough for the matrix products of a core.
TAPER = 3


def num_workers() -> int:
    """Return how many packs run in parallel on this CPU, within torch's number of threads."""
    return min(torch.get_num_threads(), MAX_WORKERS)


def plan(lengths: Sequence[int], *, workers: int, budget: int, longest: int) -> tuple[list[Pack], list[Pack]]:
    """Group recordings into packs: those that take all cores, and those that the workers run in parallel.

    Args:
        lengths: Frames of each recording.
        workers: How many packs run in parallel.
        budget: About how many frames a pack has; a recording that has more is a pack of its own.
        longest: Recordings with more frames take all cores, because two of them would need too much memory.
    """
    numbers = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for first in range(len(numbers)) if workers > 1 else ():
        alone, rest = numbers[:first], numbers[first:]
        if lengths[rest[0]] > longest:
            continue
        packs, sizes = _tapering_packs(rest, lengths, budget, workers)
        # A worker takes the next pack when it is free: packs are spread over workers as recordings over packs.
        _, ends = _spread(range(len(packs)), sizes, workers)
        if ends[0] <= MAX_IMBALANCE * sum(sizes) / workers:
            return _even_packs(alone, lengths, budget)[0], packs
    return _even_packs(numbers, lengths, budget)[0], []


def run_packs(function: Callable[[Pack], Result], packs: Sequence[Pack]) -> list[Result]:
    """Return the result of the function for each pack, in order, computed by the workers in parallel."""
    return list(_pool(num_workers(), torch.get_num_threads()).map(function, packs)) if packs else []


def _tapering_packs(
    numbers: Sequence[int], lengths: Sequence[int], budget: int, workers: int
) -> tuple[list[Pack], list[int]]:
    """Return packs of similar size, then small ones with the shortest recordings; and the sizes of all.

    A core that other processes disturb takes fewer of the last packs: at the end all wait for a small one only.
    """
    total, first, short = sum(lengths[number] for number in numbers), len(numbers), 0
    while first > 0 and short + lengths[numbers[first - 1]] <= min(workers * budget, total // 2):
        first -= 1
        short += lengths[numbers[first]]
    packs, sizes = _even_packs(numbers[:first], lengths, budget, workers)
    last_packs, last_sizes = _even_packs(numbers[first:], lengths, max(1, budget // TAPER), workers)
    return _largest_first(packs + last_packs, sizes + last_sizes)


def _even_packs(
    numbers: Sequence[int], lengths: Sequence[int], budget: int, workers: int = 1
) -> tuple[list[Pack], list[int]]:
    """Return packs of similar size, each about as large as the budget, as many for each worker; and their sizes."""
    total = sum(lengths[number] for number in numbers)
    return _spread(numbers, lengths, workers * ceil(total / (workers * budget)))


def _spread(numbers: Sequence[int], lengths: Sequence[int], count: int) -> tuple[list[Pack], list[int]]:
    """Return at most `count` packs and their sizes, the largest first.

    The recordings are taken by descending length, each into the pack that is smallest at that moment.
    """
    packs: list[Pack] = [[] for _ in range(count)]
    sizes = [0] * count
    for number in numbers:
        smallest = sizes.index(min(sizes))
        packs[smallest].append(number)
        sizes[smallest] += lengths[number]
    return _largest_first(packs, sizes)


def _largest_first(packs: list[Pack], sizes: list[int]) -> tuple[list[Pack], list[int]]:
    """Return the packs that are not empty, by descending size, and their sizes."""
    order = sorted((place for place in range(len(packs)) if packs[place]), key=lambda place: -sizes[place])
    return [packs[place] for place in order], [sizes[place] for place in order]


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Return a pool of threads that share the cores; torch keeps a number of threads for each Python thread."""
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(max(1, threads // workers))
        started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="worker", initializer=start)
    for _ in range(workers):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(threads)  # the default of threads that are started later
    return pool


# A forked child does not have its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
