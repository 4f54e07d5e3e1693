"""How recordings are taken that are long: exactly, or in one of two ways that cost less and are not exact.

Full attention over T frames takes T² steps: an hour of a base model is 1.2 PFLOP. `window` lets every frame attend
only those near it; `chunks` runs the blocks over overlapping pieces and keeps the middle of each. In both, convolutions,
their norm over time and the positional convolution are those of the whole recording, and recordings of at most
`seconds` are exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("exact", "window", "chunks")


@dataclass(frozen=True, kw_only=True)
class Long:
    """kind: "exact", "window" or "chunks".

    seconds: the width of the window, half of it before a frame and half after it; or the length of a chunk.
    overlap: seconds that a chunk hears before and after what is kept of it.

    Raises:
        ValueError: another kind, or seconds that leave nothing to keep.
    """

    kind: str = "exact"
    seconds: float = 30.0
    overlap: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"long must be one of {', '.join(KINDS)}, got {self.kind}")
        if self.kind != "exact" and not self.seconds > 0:
            raise ValueError(f"long.seconds must be above 0, got {self.seconds:g}")
        if self.kind == "chunks" and not 0 <= 2 * self.overlap < self.seconds:
            raise ValueError(
                f"long.overlap must leave something of a chunk: expected at least 0 and less than half of "
                f"long.seconds={self.seconds:g}, got {self.overlap:g}"
            )


@dataclass(frozen=True)
class Chunk:
    """Frames `begin` to `end` of a recording, of which those from `first` to `last` are kept."""

    begin: int
    end: int
    first: int
    last: int


def chunks_of(num_frames: int, size: int, overlap: int) -> Iterator[Chunk]:
    """Chunks of `size` frames at most, each sharing `overlap` on either side with what its neighbours keep."""
    if num_frames <= size:
        yield Chunk(0, num_frames, 0, num_frames)
        return
    step = size - 2 * overlap
    first = 0
    while first < num_frames:
        begin = max(first - overlap, 0)
        end = min(begin + size, num_frames)
        last = num_frames if end == num_frames else end - overlap
        yield Chunk(begin, end, first, last)
        first = last
    assert step > 0
