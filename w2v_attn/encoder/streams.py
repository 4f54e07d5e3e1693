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
MOST_STREAMS = 16
# What waiting for each other costs the cores: streams that wait longer for the last of them do not pay.
WAITING = 1.06


def streams_here() -> int:
    """How many packs go through a model at once on this CPU, in torch's threads."""
    return min(torch.get_num_threads(), MOST_STREAMS)


def plan(lengths: Sequence[int], *, streams: int, budget: int, longest: int) -> tuple[list[Pack], list[Pack]]:
    """Packs of recordings, by their numbers: those that take all cores, and those that streams share.

    lengths: frames of each recording. budget: about how many a pack has; one that is longer stands alone.
    longest: recordings with more frames take all cores, for the memory that two of them would need.
    """
    numbers = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for first in range(len(numbers)):
        rest = numbers[first:]
        if streams == 1 or lengths[rest[0]] > longest:
            continue
        total = sum(lengths[number] for number in rest)
        packs = _even_packs(rest, lengths, streams * ceil(total / (streams * budget)))
        if _last_end(packs, lengths, streams) <= WAITING * total / streams:
            return _packs_within(numbers[:first], lengths, budget), packs
    return _packs_within(numbers, lengths, budget), []


def run(function: Callable[[Pack], Result], packs: Sequence[Pack], *, streams: int) -> list[Result]:
    """What the function gives for each pack, in order; in as many threads as there are streams."""
    return list(_pool(streams, torch.get_num_threads()).map(function, packs))


def _packs_within(numbers: Pack, lengths: Sequence[int], budget: int) -> list[Pack]:
    total = sum(lengths[number] for number in numbers)
    return _even_packs(numbers, lengths, ceil(total / budget)) if numbers else []


def _even_packs(numbers: Pack, lengths: Sequence[int], count: int) -> list[Pack]:
    """At most `count` packs of like size, the largest first: each recording, the longest first, into the emptiest."""
    packs: list[Pack] = [[] for _ in range(count)]
    sizes = [0] * count
    for number in numbers:
        emptiest = sizes.index(min(sizes))
        packs[emptiest].append(number)
        sizes[emptiest] += lengths[number]
    by_size = sorted(zip(sizes, packs, strict=True), key=lambda pair: -pair[0])
    return [pack for _, pack in by_size if pack]


def _last_end(packs: Sequence[Pack], lengths: Sequence[int], streams: int) -> int:
    """When the last stream is done, in frames, where each takes the next pack when it is free."""
    ends = [0] * streams
    for pack in packs:
        ends[ends.index(min(ends))] += sum(lengths[number] for number in pack)
    return max(ends)


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
