"""Recordings one after the other as one long waveform, cut so that convolutions over it are those of each recording.

A waveform lies in a slot, a whole number of blocks long and zero where the recording has ended. A block is a whole
number of final frames, so that in every layer the frames of a slot begin where the slot begins. Frames that see beyond
the end of their recording are nobody's: they are left out at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames of a block: a recording wastes half of one, and the products of its windows should not be thin.
BLOCK = 8
# Blocks that are computed together, 160 seconds: the widest frames of a base model then take 0.5 GB in half precision,
# and 1 GB in float32; where a LayerNorm follows there are two of them.
PIECE = 1024


@dataclass(frozen=True)
class Grid:
    """What convolutions make of samples.

    kernel, stride: of the first one. hop: samples from one final frame to the next. field: samples that a frame sees.
    """

    kernel: int
    stride: int
    hop: int
    field: int

    @classmethod
    def of(cls, steps: Sequence[tuple[int, int]]) -> "Grid":
        """That of convolutions of these kernels and strides."""
        field = 1
        for kernel, stride in reversed(steps):
            field = (field - 1) * stride + kernel
        return cls(*steps[0], prod(stride for _, stride in steps), field)

    @classmethod
    def of_config(cls, config: Any) -> "Grid":
        """That of the convolutions of a Hugging Face model."""
        return cls.of(list(zip(config.conv_kernel, config.conv_stride, strict=True)))

    def count_frames(self, samples: int) -> int:
        """Final frames of a waveform of so many samples; 0 where it is too short."""
        return max((samples - self.field) // self.hop + 1, 0)

    @property
    def block(self) -> int:
        """Samples of a block."""
        return BLOCK * self.hop

    @property
    def windows(self) -> int:
        """Windows of the first convolution that begin in a block."""
        return self.block // self.stride

    @property
    def margin(self) -> int:
        """Blocks that the frames of a block see something of after it."""
        return max(-(-(self.field - self.hop) // self.block), 0)


@dataclass(frozen=True)
class Piece:
    """Blocks `begin` to `end`. kept: int64, which of their final frames are somebody's, in order."""

    begin: int
    end: int
    kept: Tensor


@dataclass(frozen=True)
class Pack:
    """Waveforms in their slots.

    samples: [N], the blocks, then a margin of zeros. lengths: int64 [R], samples of each recording.
    owners: int64 [blocks and margin], the recording that each is of; the margin is anybody's.
    remaining: int64 [blocks], windows of the first convolution from the begin of a block to the end of its recording.
    pieces: all blocks in order, and so all frames.
    """

    grid: Grid
    samples: Tensor
    lengths: Tensor
    owners: Tensor
    remaining: Tensor
    pieces: list[Piece]

    @classmethod
    def of(cls, waveforms: Sequence[Tensor], grid: Grid) -> "Pack":
        """waveforms: [samples] each, of one dtype and device; all of the pack lies there, but is counted on the CPU."""
        device = waveforms[0].device
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device="cpu")
        blocks = (lengths + grid.block - 1) // grid.block
        firsts, total = blocks.cumsum(0) - blocks, int(blocks.sum())
        owners = torch.repeat_interleave(blocks)
        windows = (lengths - grid.kernel) // grid.stride + 1
        remaining = windows[owners] - (torch.arange(total, device="cpu") - firsts[owners]) * grid.windows

        frames = torch.tensor([grid.count_frames(len(waveform)) for waveform in waveforms], device="cpu")
        nobodys = firsts * BLOCK - (frames.cumsum(0) - frames)  # before the frames of each recording
        kept = torch.arange(int(frames.sum()), device="cpu") + nobodys.repeat_interleave(frames)
        begins = range(0, total, PIECE)
        counts = torch.bincount(kept // (PIECE * BLOCK), minlength=len(begins)).tolist()

        def sent(counted: Tensor) -> Tensor:
            return to_device(counted, device)

        parts = sent(kept % (PIECE * BLOCK)).split(counts)
        return cls(
            grid=grid,
            samples=_in_slots(waveforms, (blocks * grid.block).tolist(), grid.margin * grid.block + grid.field),
            lengths=sent(lengths),
            owners=sent(F.pad(owners, (0, grid.margin))),
            remaining=sent(remaining),
            pieces=[Piece(begin, min(begin + PIECE, total), part) for begin, part in zip(begins, parts, strict=True)],
        )

    def seen(self, piece: Piece) -> Tensor:
        """The samples that the frames of a piece see, [samples]; its recordings' neighbours among them."""
        grid = self.grid
        return self.samples[piece.begin * grid.block : (piece.end * BLOCK - 1) * grid.hop + grid.field]

    def windows(self, begin: int, end: int) -> Tensor:
        """Windows of the first convolution that begin in blocks `begin` to `end`: a view [blocks, windows, kernel]."""
        grid = self.grid
        inside = self.samples[begin * grid.block : end * grid.block + grid.kernel - grid.stride]
        return inside.unfold(0, grid.kernel, grid.stride).unflatten(0, (end - begin, grid.windows))


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. A GPU copies it when it comes to that: nobody waits for what it does before."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def _in_slots(waveforms: Sequence[Tensor], slots: Sequence[int], margin: int) -> Tensor:
    """Waveforms one after the other, zeros up to the end of each slot, and a margin of them at last."""
    rooms = [slot - len(waveform) for waveform, slot in zip(waveforms, slots, strict=True)]
    rooms[-1] += margin
    zeros = waveforms[0].new_zeros(max(rooms))
    parts: list[Tensor] = []
    for waveform, room in zip(waveforms, rooms, strict=True):
        parts += (waveform, zeros[:room])
    return torch.cat(parts)


def window_moments(pack: Pack) -> tuple[Tensor, Tensor]:
    """Of the windows of each recording the mean, [R, kernel], and the centred second moment, [R, kernel, kernel].

    In float64; a block at a time, so that none is of two recordings.
    """
    grid, R, device = pack.grid, len(pack.lengths), pack.samples.device
    sums, total, square = (
        torch.zeros(R, *shape, dtype=torch.float64, device=device)
        for shape in ((), (grid.kernel,), (grid.kernel, grid.kernel))
    )
    blocks = len(pack.remaining)
    owners = pack.owners[:blocks]
    sums.index_add_(0, owners, pack.samples[: blocks * grid.block].view(blocks, -1).sum(1, dtype=torch.float64))
    centres = sums / pack.lengths  # near the windows' own mean: taking it off loses no digits
    places = torch.arange(grid.windows, device=device)
    for piece in pack.pieces:
        here = slice(piece.begin, piece.end)
        windows = pack.windows(piece.begin, piece.end).double() - centres[owners[here], None, None]
        windows.masked_fill_((places >= pack.remaining[here, None]).unsqueeze(-1), 0.0)
        total.index_add_(0, owners[here], windows.sum(1))
        square.index_add_(0, owners[here], torch.bmm(windows.mT, windows))
    counts = ((pack.lengths - grid.kernel) // grid.stride + 1).unsqueeze(-1)
    mean = total / counts
    moment = square / counts.unsqueeze(-1) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    return mean + centres.unsqueeze(-1), moment


def own_products(pack: Pack, piece: Piece, weights: Tensor) -> Tensor:
    """Windows of the first convolution that a piece sees, each with the weights of its recording: [T, C].

    weights: [R, kernel + 1, C]; the last is the bias: the weight of one sample more, which is always 1.
    """
    grid, end = pack.grid, piece.end + pack.grid.margin
    count = (len(pack.seen(piece)) - grid.kernel) // grid.stride + 1
    windows = F.pad(pack.windows(piece.begin, end), (0, 1), value=1.0)
    # Not by brackets, whose backward adds up in any order: a run that goes on would not end with the same bits.
    own = weights.index_select(0, pack.owners[piece.begin : end])
    return torch.bmm(windows, own).flatten(0, 1)[:count]
