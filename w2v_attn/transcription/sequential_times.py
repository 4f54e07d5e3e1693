"""Times that follow each other, as subtitles and the tiers of annotation files need them."""

from collections.abc import Iterator, Sequence


def sequential_times(
    spoken: Sequence[tuple[float, float]], *, shortest: float, longest: float = float("inf")
) -> Iterator[tuple[float, float]]:
    """Yield the start and the end of each span in whole milliseconds, in order and without overlap.

    A span ends where the next one begins, at the latest. One that is too short ends later, and then the next one may
    begin later.

    Args:
        spoken: Start and end of each span, in seconds.
        shortest: Seconds that a span has at least.
        longest: Seconds that a span has at most.
    """
    least, most = round(1000 * shortest), 1000 * longest
    times = [(round(1000 * start), round(1000 * end)) for start, end in spoken]
    free = 0
    for number, (start, end) in enumerate(times):
        start = max(start, free)
        following = times[number + 1][0] if number + 1 < len(times) else end
        end = max(min(end, max(following, start), int(min(start + most, end))), start + least)
        yield start / 1000, end / 1000
        free = end
