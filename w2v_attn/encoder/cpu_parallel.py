"""Recordings in packs, and packs in streams: on a CPU each stream is a thread with cores of its own.

The products of a pack reach a core's full rate on one core; on several, all wait for the slowest after every step, a
few hundred times a second. So several packs go through the model at once, and the cores meet only at the end. Where the
packs cannot be of like size, a recording is much longer than the others, it takes all cores.
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
Pack = list[int]

# Beyond these, streams wait for Python's lock; each has several cores then.
MAX_STREAMS = 16
# What waiting for each other costs the cores: streams that wait longer for the last of them do not pay.
WAITING = 1.06
# How much smaller the last packs are: still thick enough for the products of a core.
TAPER = 3


def streams_here() -> int:
    """How many packs go through a model at once on this CPU, in torch's threads."""
    return min(torch.get_num_threads(), MAX_STREAMS)


def plan(lengths: Sequence[int], *, streams: int, budget: int, longest: int) -> tuple[list[Pack], list[Pack]]:
    """Packs of recordings, by their numbers: those that take all cores, and those that streams share.

    lengths: frames of each recording. budget: about how many a pack has, or one recording that has more.
    longest: recordings with more frames take all cores, for the memory that two of them would need.
    """
    numbers = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for first in range(len(numbers)) if streams > 1 else ():
        apart, rest = numbers[:first], numbers[first:]
        if lengths[rest[0]] > longest:
            continue
        packs, sizes = _tapering_packs(rest, lengths, budget, streams)
        # Each stream takes the next pack when it is free: packs are spread over streams as recordings over packs.
        _, ends = _spread(range(len(packs)), sizes, streams)
        if ends[0] <= WAITING * sum(sizes) / streams:
            return _even_packs(apart, lengths, budget)[0], packs
    return _even_packs(numbers, lengths, budget)[0], []


def run(function: Callable[[Pack], Result], packs: Sequence[Pack]) -> list[Result]:
    """What the function gives for each pack, in order; in as many threads as there are streams here."""
    return list(_pool(streams_here(), torch.get_num_threads()).map(function, packs)) if packs else []


def _tapering_packs(
    numbers: Sequence[int], lengths: Sequence[int], budget: int, streams: int
) -> tuple[list[Pack], list[int]]:
    """Packs of like size, then small ones of the shortest recordings; and their sizes.

    A core that others disturb takes fewer of the last packs: at the end all wait for a small one.
    """
    total, first, short = sum(lengths[number] for number in numbers), len(numbers), 0
    while first > 0 and short + lengths[numbers[first - 1]] <= min(streams * budget, total // 2):
        first -= 1
        short += lengths[numbers[first]]
    packs, sizes = _even_packs(numbers[:first], lengths, budget, streams)
    last_packs, last_sizes = _even_packs(numbers[first:], lengths, max(1, budget // TAPER), streams)
    return _largest_first(packs + last_packs, sizes + last_sizes)


def _even_packs(
    numbers: Sequence[int], lengths: Sequence[int], budget: int, streams: int = 1
) -> tuple[list[Pack], list[int]]:
    """Packs of like size, about as large as the budget, as many for each stream; and their sizes."""
    total = sum(lengths[number] for number in numbers)
    return _spread(numbers, lengths, streams * ceil(total / (streams * budget)))


def _spread(numbers: Sequence[int], lengths: Sequence[int], count: int) -> tuple[list[Pack], list[int]]:
    """At most `count` packs and their sizes, the largest first: each number, the longest first, into the emptiest."""
    packs: list[Pack] = [[] for _ in range(count)]
    sizes = [0] * count
    for number in numbers:
        emptiest = sizes.index(min(sizes))
        packs[emptiest].append(number)
        sizes[emptiest] += lengths[number]
    return _largest_first(packs, sizes)


def _largest_first(packs: list[Pack], sizes: list[int]) -> tuple[list[Pack], list[int]]:
    """Those packs in which there is anything, and their sizes."""
    order = sorted((place for place in range(len(packs)) if packs[place]), key=lambda place: -sizes[place])
    return [packs[place] for place in order], [sizes[place] for place in order]


@cache
def _pool(streams: int, threads: int) -> ThreadPoolExecutor:
    """Threads that share the cores: torch counts its threads for each thread of Python apart."""
    started = threading.Barrier(streams + 1)

    def start() -> None:
        torch.set_num_threads(max(1, threads // streams))
        started.wait()

    pool = ThreadPoolExecutor(streams, thread_name_prefix="stream", initializer=start)
    for _ in range(streams):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(threads)  # the number that threads have which are not started yet
    return pool


# The threads of a process are not those of its child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
