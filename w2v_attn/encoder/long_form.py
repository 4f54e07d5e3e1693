# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""How long recordings are processed: with full attention, or in one of two cheaper ways that are approximate.

Full attention over T frames takes T² steps: an hour of a base model is 1.2 PFLOP. `sliding_window` lets every frame
attend only to the frames near it; `chunked` runs the blocks over overlapping chunks and keeps the middle of each. In
both, the convolutions, their norm over time and the positional convolution are computed over the whole recording, and
recordings of at most `seconds` are exact.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

KINDS = ("full", "sliding_window", "chunked")


@dataclass(frozen=True, kw_only=True)
class LongForm:
    """How long recordings are processed.

    Args:
        kind: "full", "sliding_window" or "chunked".
        seconds: Width of the window, half of it before a frame and half after it; or the length of a chunk.
        overlap: Seconds of context that a chunk has before and after the part of it that is kept.

    Raises:
        ValueError: an unknown kind, or seconds that leave nothing to keep.
    """

    kind: str = "full"
    seconds: float = 30.0
    overlap: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"long_form must be one of {', '.join(KINDS)}, got {self.kind}")
        if self.kind != "full" and not self.seconds > 0:
            raise ValueError(f"long_form.seconds must be above 0, got {self.seconds:g}")
        if self.kind == "chunked" and not 0 <= 2 * self.overlap < self.seconds:
            raise ValueError(
                f"long_form.overlap must leave something of a chunk: expected at least 0 and less than half of "
                f"long_form.seconds={self.seconds:g}, got {self.overlap:g}"
            )

    def describe(self) -> str:
        """Return what determines features, in words: `chunked of 30 s, 5 s of overlap`."""
        overlap = f", {self.overlap:g} s of overlap" if self.kind == "chunked" else ""
        return self.kind if self.kind == "full" else f"{self.kind} of {self.seconds:g} s{overlap}"

    def chunks(self, lengths: Sequence[int], frame_rate: float) -> Iterator["Chunk"]:
        """Yield the chunks of packed recordings; a recording that is not long is one chunk.

        Args:
            lengths: Frames of each recording.
            frame_rate: Frames per second.
        """
        size, overlap = max(1, round(self.seconds * frame_rate)), round(self.overlap * frame_rate)
        size = max(size, 2 * overlap + 1)
        origin = 0
        for length in lengths:
            first = 0
            while first < length:
                begin = max(first - overlap, 0) if length > size else 0
                end = min(begin + size, length)
                last = length if end == length else end - overlap
                yield Chunk(origin + begin, origin + end, origin + first, origin + last)
                first = last
            origin += length


@dataclass(frozen=True)
class Chunk:
    """Frames `begin` to `end` go through the blocks; those from `first` to `last` are kept."""

    begin: int
    end: int
    first: int
    last: int


def batch_by_frames(items: Iterable[Item], frames_of: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Yield batches of consecutive items with at most `budget` frames; a larger item is a batch of its own."""
    batch: list[Item] = []
    total = 0
    for item in items:
        frames = frames_of(item)
        if batch and total + frames > budget:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += frames
    if batch:
        yield batch
