"""Recordings concatenated to one long waveform, aligned so that convolutions over it are exact for each recording.

A waveform has a slot, which is a whole number of blocks long and filled up with zeros. A block is a whole number of
final frames, so that in every layer the frames of a slot begin where the slot begins. Frames whose receptive field
reaches beyond the end of their recording are computed and dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames of a block: a recording wastes half a block on average, and matrix products over a block should not be thin.
FRAMES_PER_BLOCK = 8
# Blocks that are computed at once, 160 seconds: the widest frames of a base model then take 0.5 GB in half precision
# and 1 GB in float32, and twice that where a LayerNorm follows.
BLOCKS_PER_TILE = 1024


@dataclass(frozen=True)
class Grid:
    """The geometry of a stack of convolutions over samples.

    Attributes:
        kernel: Kernel of the first convolution.
        stride: Stride of the first convolution.
        hop: Samples from one final frame to the next.
        field: Receptive field of a final frame in samples.
    """

    kernel: int
    stride: int
    hop: int
    field: int

    @classmethod
    def of(cls, steps: Sequence[tuple[int, int]]) -> "Grid":
        """Return the grid of convolutions with these (kernel, stride) pairs."""
        field = 1
        for kernel, stride in reversed(steps):
            field = (field - 1) * stride + kernel
        return cls(*steps[0], prod(stride for _, stride in steps), field)

    @classmethod
    def of_config(cls, config: Any) -> "Grid":
        """Return the grid of the convolutions of a Hugging Face model."""
        return cls.of(list(zip(config.conv_kernel, config.conv_stride, strict=True)))

    def count_frames(self, samples: int) -> int:
        """Return the number of final frames of a waveform with this many samples; 0 if it is too short."""
        return max((samples - self.field) // self.hop + 1, 0)

    @property
    def block(self) -> int:
        """Number of samples of a block."""
        return FRAMES_PER_BLOCK * self.hop

    @property
    def windows(self) -> int:
        """Number of windows of the first convolution that begin in a block."""
        return self.block // self.stride

    @property
    def margin(self) -> int:
        """Number of blocks after a block that its frames depend on."""
        return max(-(-(self.field - self.hop) // self.block), 0)


@dataclass(frozen=True)
class WaveformTile:
    """Blocks `begin` to `end`, computed at once.

    Attributes:
        kept: int64, the indices of the final frames that belong to a recording, in order.
    """

    begin: int
    end: int
    kept: Tensor


@dataclass(frozen=True)
class PackedWaveforms:
    """Several waveforms as one, each in its slot.

    Attributes:
        grid: The geometry of the convolutions.
        samples: [N], all slots, then a margin of zeros.
        lengths: int64 [R], samples of each recording.
        owners: int64 [blocks + margin], the index of the recording in each block; arbitrary in the margin.
        remaining: int64 [blocks], windows of the first convolution from the start of a block to the end of its
            recording.
        tiles: Consecutive ranges of blocks that cover all blocks, and so all frames.
    """

    grid: Grid
    samples: Tensor
    lengths: Tensor
    owners: Tensor
    remaining: Tensor
    tiles: list[WaveformTile]

    @classmethod
    def of(cls, waveforms: Sequence[Tensor], grid: Grid) -> "PackedWaveforms":
        """Return the packed waveforms.

        Args:
            waveforms: [samples] each, all of one dtype and device; the result is on that device.
            grid: The geometry of the convolutions.
        """
        device = waveforms[0].device
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device="cpu")
        blocks = (lengths + grid.block - 1) // grid.block
        firsts, total = blocks.cumsum(0) - blocks, int(blocks.sum())
        owners = torch.repeat_interleave(blocks)
        windows = (lengths - grid.kernel) // grid.stride + 1
        remaining = windows[owners] - (torch.arange(total, device="cpu") - firsts[owners]) * grid.windows

        frames = torch.tensor([grid.count_frames(len(waveform)) for waveform in waveforms], device="cpu")
        dropped = firsts * FRAMES_PER_BLOCK - (frames.cumsum(0) - frames)  # before the frames of each recording
        kept = torch.arange(int(frames.sum()), device="cpu") + dropped.repeat_interleave(frames)
        begins = range(0, total, BLOCKS_PER_TILE)
        counts = torch.bincount(kept // (BLOCKS_PER_TILE * FRAMES_PER_BLOCK), minlength=len(begins)).tolist()

        def send(x: Tensor) -> Tensor:
            return to_device(x, device)

        parts = send(kept % (BLOCKS_PER_TILE * FRAMES_PER_BLOCK)).split(counts)
        return cls(
            grid=grid,
            samples=_concatenate(waveforms, (blocks * grid.block).tolist(), grid.margin * grid.block + grid.field),
            lengths=send(lengths),
            owners=send(F.pad(owners, (0, grid.margin))),
            remaining=send(remaining),
            tiles=[
                WaveformTile(begin, min(begin + BLOCKS_PER_TILE, total), part)
                for begin, part in zip(begins, parts, strict=True)
            ],
        )

    def samples_of(self, tile: WaveformTile) -> Tensor:
        """Return the samples that the frames of a tile depend on, [samples], across the borders of recordings."""
        grid = self.grid
        return self.samples[tile.begin * grid.block : (tile.end * FRAMES_PER_BLOCK - 1) * grid.hop + grid.field]

    def windows(self, begin: int, end: int) -> Tensor:
        """Return the windows of the first convolution in blocks `begin` to `end`, a view [blocks, windows, kernel]."""
        grid = self.grid
        inside = self.samples[begin * grid.block : end * grid.block + grid.kernel - grid.stride]
        return inside.unfold(0, grid.kernel, grid.stride).unflatten(0, (end - begin, grid.windows))


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device. The copy to a GPU is asynchronous: the host does not wait for it."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def _concatenate(waveforms: Sequence[Tensor], slots: Sequence[int], margin: int) -> Tensor:
    """Return the waveforms concatenated, with zeros up to the end of each slot and a margin of zeros at the end."""
    gaps = [slot - len(waveform) for waveform, slot in zip(waveforms, slots, strict=True)]
    gaps[-1] += margin
    zeros = waveforms[0].new_zeros(max(gaps))
    parts: list[Tensor] = []
    for waveform, gap in zip(waveforms, gaps, strict=True):
        parts += (waveform, zeros[:gap])
    return torch.cat(parts)


def window_moments(pack: PackedWaveforms) -> tuple[Tensor, Tensor]:
    """Return the mean [R, kernel] and centred second moment [R, kernel, kernel] of the windows of each recording.

    Computed in float64, block by block, because a block belongs to one recording.
    """
    grid, R, device = pack.grid, len(pack.lengths), pack.samples.device
    sums, total, square = (
        torch.zeros(R, *shape, dtype=torch.float64, device=device)
        for shape in ((), (grid.kernel,), (grid.kernel, grid.kernel))
    )
    blocks = len(pack.remaining)
    owners = pack.owners[:blocks]
    sums.index_add_(0, owners, pack.samples[: blocks * grid.block].view(blocks, -1).sum(1, dtype=torch.float64))
    centres = sums / pack.lengths  # near the windows' own mean: subtracting it loses no digits
    places = torch.arange(grid.windows, device=device)
    for tile in pack.tiles:
        here = slice(tile.begin, tile.end)
        windows = pack.windows(tile.begin, tile.end).double() - centres[owners[here], None, None]
        windows.masked_fill_((places >= pack.remaining[here, None]).unsqueeze(-1), 0.0)
        total.index_add_(0, owners[here], windows.sum(1))
        square.index_add_(0, owners[here], torch.bmm(windows.mT, windows))
    counts = ((pack.lengths - grid.kernel) // grid.stride + 1).unsqueeze(-1)
    mean = total / counts
    moment = square / counts.unsqueeze(-1) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    return mean + centres.unsqueeze(-1), moment


def apply_recording_weights(pack: PackedWaveforms, tile: WaveformTile, weights: Tensor) -> Tensor:
    """Return the first convolution over a tile, [T, C], with the weights of each recording.

    Args:
        pack: The packed waveforms.
        tile: One of its tiles.
        weights: [R, kernel + 1, C]; the last row is the bias: the weight of one more sample, which is always 1.
    """
    grid, end = pack.grid, tile.end + pack.grid.margin
    count = (len(pack.samples_of(tile)) - grid.kernel) // grid.stride + 1
    windows = F.pad(pack.windows(tile.begin, end), (0, 1), value=1.0)
    # The backward of indexing with brackets adds up in any order: a resumed run would not be bit-identical.
    own = weights.index_select(0, pack.owners[tile.begin : end])
    return torch.bmm(windows, own).flatten(0, 1)[:count]
