"""Padded batches: which frames are real, and conversion between padded and packed frames."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedBatch:
    """The real frames of a padded batch [B, T, C].

    shape: (B, T). real: bool [B, T]; None if all are. counts: real frames of each recording if these come first; else
    None. indices: int64 [ΣT], of the real frames among all; None if all are.
    """

    shape: tuple[int, int]
    real: Tensor | None
    counts: tuple[int, ...] | None
    indices: Tensor | None

    @classmethod
    def of(cls, hidden_states: Tensor, attention_mask: Tensor | None) -> "PaddedBatch":
        """Return the batch of a mask [B, T] with True or 1 for real frames; without a mask all frames are real."""
        B, T = hidden_states.shape[:2]
        if attention_mask is None:
            return cls((B, T), None, (T,) * B, None)
        real = attention_mask.bool()
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            return cls((B, T), real, None, None)
        return cls((B, T), real, tuple(real.sum(-1).tolist()), real.flatten().nonzero()[:, 0])

    @classmethod
    def of_counts(cls, counts: tuple[int, ...], T: int, device: torch.device) -> "PaddedBatch":
        """Return a batch of recordings of `counts` frames, padded to T."""
        real = torch.arange(T, device=device) < torch.tensor(counts, device=device)[:, None]
        return cls((len(counts), T), real, counts, real.flatten().nonzero()[:, 0])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real frames of each recording that has any; empty if they do not come first."""
        return tuple(count for count in self.counts or () if count)

    def unpad(self, x: Tensor) -> Tensor:
        """Return the packed real frames: [B, T, C] -> [ΣT, C]."""
        return x.flatten(0, 1) if self.indices is None else x.flatten(0, 1).index_select(0, self.indices)

    def pad(self, frames: Tensor) -> Tensor:
        """Return the padded batch with zeros in padded frames: [ΣT, C] -> [B, T, C]."""
        B, T = self.shape
        if self.indices is None:
            return frames.unflatten(0, (B, T))
        padded = frames.new_zeros(B * T, frames.shape[-1]).index_copy(0, self.indices, frames)
        return padded.unflatten(0, (B, T))

    def zeroed(self, x: Tensor) -> Tensor:
        """Return x [B, T, C] with zeros in padded frames."""
        return x if self.real is None else x.masked_fill(~self.real.unsqueeze(-1), 0.0)


@dataclass(frozen=True)
class BlockMask:
    """The mask of a block that gets padded frames. unpads: whether the block packs them inside."""

    batch: PaddedBatch
    unpads: bool
