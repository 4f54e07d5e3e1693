# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""`AttentionMask`: which keys a query may attend and what is added to the scores, for every backend."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2v_attn.attention.mathematics import BiasFn
from w2v_attn.attention.relative import RelativePositions
from w2v_attn.ops.numerics import softmax_dtype


class BiasTensors(NamedTuple):
    """The tensors that the additive part of the scores is computed from; or their gradients, in the same shapes.

    bias: of the mask. table, gate, queries, vectors: of `RelativePositions`.
    """

    bias: Any = None
    table: Any = None
    gate: Any = None
    queries: Any = None
    vectors: Any = None

    @classmethod
    def concatenate(cls, parts: Sequence["BiasTensors"]) -> "BiasTensors":
        """Return the gradients of packed recordings: gates and queries are concatenated, shared tensors summed."""

        def concatenated(name: str) -> Tensor | None:
            gradients = [getattr(part, name) for part in parts]
            if any(gradient is None for gradient in gradients):
                return None
            return torch.cat(gradients, 2) if name in ("gate", "queries") else torch.stack(gradients).sum(0)

        return cls(**{name: concatenated(name) for name in cls._fields})


@dataclass(frozen=True)
class AttentionMask:
    """The mask and the biases of the attention scores. In every boolean, True = attend.

    padding: bool [B, T], True = a real frame; padded keys are attended by no query.
    allowed: bool [B or 1, H or 1, T or 1, T or 1], True = this query may attend this key.
    bias: float of such a shape, added to the scores; −inf masks a key.
    causal: a query attends itself and earlier frames.
    lengths: frames of each packed recording; a recording attends only itself. None: frames are not packed.
    positions: relative positions, added to the scores.
    """

    padding: Tensor | None = None
    allowed: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    lengths: tuple[int, ...] | None = None
    positions: RelativePositions | None = None

    @classmethod
    def from_arguments(
        cls, x: Tensor, num_heads: int, padding_mask: Tensor | None, attention_mask: Tensor | str | None
    ) -> "AttentionMask":
        """Return the mask of a call with hidden states `x` [B, T, C].

        Raises:
            ValueError: a mask of the wrong shape or dtype, or an unknown name of a mask.
        """
        B, T = x.shape[:2]
        if padding_mask is not None and (padding_mask.dtype != torch.bool or padding_mask.shape != (B, T)):
            raise ValueError(
                f"padding_mask must be bool [{B}, {T}] with True for a real frame, got "
                f"{padding_mask.dtype} {list(padding_mask.shape)}"
            )
        if attention_mask is None:
            return NO_MASK if padding_mask is None else cls(padding_mask)
        if isinstance(attention_mask, str):
            if attention_mask != "causal":
                raise ValueError(f'attention_mask must be "causal" or a tensor, got "{attention_mask}"')
            return cls(padding_mask, causal=True)

        shape = (1,) * (4 - attention_mask.dim()) + tuple(attention_mask.shape)
        full = (B, num_heads, T, T)
        if len(shape) > 4 or any(n not in (1, m) for n, m in zip(shape, full, strict=True)):
            raise ValueError(
                f"attention_mask must broadcast to [B, H, T, T] = {list(full)}, got {list(attention_mask.shape)}"
            )
        attention_mask = attention_mask.reshape(shape)
        if attention_mask.dtype == torch.bool:
            return cls(padding_mask, allowed=attention_mask)
        if attention_mask.is_floating_point():
            return cls(padding_mask, bias=attention_mask)
        raise ValueError(
            f"attention_mask must be bool (True = attend) or float (added to the scores), got {attention_mask.dtype}: "
            "convert 0/1 integers with .bool()"
        )

    @property
    def restricts_keys(self) -> bool:
        """Whether some row may have no key to attend."""
        return self.padding is not None or self.allowed is not None or self.bias is not None

    def only_padding(self) -> bool:
        """Return whether nothing but padding and causality restricts or biases the scores."""
        return self.allowed is None and self.bias is None and self.positions is None

    @property
    def bias_tensors(self) -> BiasTensors:
        """The tensors of what is added to the scores, as arguments of autograd functions."""
        if self.positions is None:
            return BiasTensors(self.bias)
        return BiasTensors(self.bias, **{name: getattr(self.positions, name) for name in BiasTensors._fields[1:]})

    def with_positions(self, positions: RelativePositions) -> "AttentionMask":
        """Return a copy that also adds these positions to the scores."""
        return replace(self, positions=positions)

    def with_bias_tensors(self, tensors: Sequence[Tensor | None]) -> "AttentionMask":
        """Return a copy with these tensors instead of `bias_tensors`."""
        bias, *others = tensors
        positions = self.positions
        if positions is not None:
            positions = replace(positions, **dict(zip(BiasTensors._fields[1:], others, strict=True)))
        return replace(self, bias=bias, positions=positions)

    @property
    def boolean_masks(self) -> tuple[Tensor | None, Tensor | None]:
        """padding and allowed."""
        return self.padding, self.allowed

    def with_boolean_masks(self, padding: Tensor | None, allowed: Tensor | None) -> "AttentionMask":
        """Return a copy with these tensors instead of `boolean_masks`."""
        return replace(self, padding=padding, allowed=allowed)

    def without_tensors(self) -> "AttentionMask":
        """Return a copy without tensors, which autograd saves instead, so that torch detects later changes."""
        return self.with_boolean_masks(None, None).with_bias_tensors(BiasTensors())

    @property
    def recording_slices(self) -> list[slice]:
        """The frames of each packed recording."""
        assert self.lengths is not None
        ends = accumulate(self.lengths)
        return [slice(end - length, end) for length, end in zip(self.lengths, ends, strict=True)]

    def slice_frames(self, part: slice) -> "AttentionMask":
        """Return the mask of the packed recording that has these frames."""
        assert not self.restricts_keys
        assert not self.causal
        return NO_MASK if self.positions is None else AttentionMask(positions=self.positions.slice_frames(part))

    def key_counts(self, num_recordings: int, num_frames: int) -> list[int]:
        """Return for each recording how many leading keys include all real ones; the others are skipped.

        On an accelerator the host would have to wait to read the mask, so all keys are counted there.
        """
        if self.padding is None or self.padding.device.type != "cpu" or num_frames == 0:
            return [num_frames] * num_recordings
        last_real = torch.where(self.padding, torch.arange(1, num_frames + 1, device=self.padding.device), 0).amax(1)
        counts: list[int] = last_real.tolist()  # type: ignore[reportUnknownMemberType]
        return counts

    def tile(
        self, recording: int, heads: slice, rows: slice, num_keys: int, *, like: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return (bias, allowed) of a tile of rows and the first `num_keys` keys.

        Each is [1 or H, 1 or I, 1 or keys] or None. The bias does not include positions; `bias_fn` adds those.

        Args:
            recording: Number of the recording in the batch.
            heads: Heads of the tile.
            rows: Queries of the tile.
            num_keys: Keys of the tile.
            like: The queries. The bias has the dtype of their scores: a narrower one would round its row maximum.
        """
        keys = slice(0, num_keys)
        parts: list[Tensor] = []
        if self.padding is not None:
            real = self.padding[recording, keys]
            # Batches are usually padded at the end: the remaining keys are then all real.
            if real.device.type != "cpu" or not bool(real.all()):
                parts.append(real[None, None, :])
        if self.allowed is not None:
            parts.append(_cut(self.allowed, recording, heads, rows, keys))
        if self.causal:
            parts.append(_past(rows, num_keys, like.device)[None])
        allowed = None
        for part in parts:
            allowed = part if allowed is None else allowed & part
        if self.bias is None:
            return None, allowed
        bias = _cut(self.bias, recording, heads, rows, keys).to(softmax_dtype(like))
        allowed_bias = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
        return bias - _row_max(allowed_bias), allowed

    def bias_fn(self, recording: int, heads: slice, rows: slice, num_keys: int) -> BiasFn | None:
        """Return a function that adds position biases to the scores of a tile, or None if there are no positions."""
        if self.positions is None:
            return None
        keys = slice(0, num_keys)
        return partial(self.positions.add_to_scores, recording=recording, heads=heads, rows=rows, keys=keys)

    def zeros(self, needs: Sequence[bool], dtype: torch.dtype) -> BiasTensors:
        """Return zero gradients of the bias tensors, to accumulate into; None for those that need none."""
        shapes = zip(self.bias_tensors, needs, strict=True)
        return BiasTensors(
            *(torch.zeros_like(x, dtype=dtype) if x is not None and need else None for x, need in shapes)
        )

    def tile_backward(self, ds: Tensor, recording: int, heads: slice, rows: slice, gradients: BiasTensors) -> None:
        """Add the gradients of a tile's bias tensors to `gradients`. ds: [H, I, keys], dS of step (3)."""
        if gradients.bias is not None:
            _add_unbroadcast(gradients.bias, ds, recording, heads, rows)
        if self.positions is not None and any(gradient is not None for gradient in gradients[1:]):
            named = {
                f"d{name}": gradient for name, gradient in zip(BiasTensors._fields[1:], gradients[1:], strict=True)
            }
            self.positions.tile_backward(ds, recording, heads, rows, **named)

    def bias_backward(self, ds: Tensor, needs: Sequence[bool]) -> BiasTensors:
        """Return the gradients of the bias tensors from the whole dS, [B, H, T, T]."""
        gradients = self.zeros(needs, ds.dtype)
        for recording, ds_HIT in enumerate(ds):
            self.tile_backward(ds_HIT, recording, slice(0, ds.shape[1]), slice(0, ds.shape[2]), gradients)
        return gradients

    def as_bias(self, q: Tensor, dtype: torch.dtype, *, with_causal: bool = True) -> Tensor | None:
        """Return the whole mask as one additive tensor, [B or 1, H or 1, T or 1, T]; None if there is nothing to add.

        Masked entries are the most negative finite number: exp(S − max) is then exactly 0, and a row without any key
        stays finite inside the kernel.

        Args:
            q: Queries [B, H, T, D].
            dtype: Dtype of the result.
            with_causal: Whether to include the causal mask.
        """
        num_frames, lowest = q.shape[2], torch.finfo(dtype).min
        total = None if self.bias is None else self.bias.to(dtype).clamp(min=lowest)
        for allowed in self._allowed_parts(num_frames, with_causal):
            if total is None:
                total = torch.zeros((), dtype=dtype, device=allowed.device)
            total = torch.where(allowed, total, lowest)
        if total is None and self.positions is None:
            return None
        if total is None:
            total = torch.zeros((), dtype=dtype, device=q.device)
        if self.bias is not None:
            total = (total - _row_max(total)).clamp(min=lowest)
        if self.positions is not None:
            total = (total + self._all_positions(q, dtype)).clamp(min=lowest)
        return total.expand(*total.shape[:3], num_frames)

    def _all_positions(self, q: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the position biases of all pairs of frames, [B, H, T, T]."""
        assert self.positions is not None
        B, H, T, _ = q.shape
        heads, frames = slice(0, H), slice(0, T)
        return torch.stack([self.positions.tile(b, heads, frames, frames, dtype) for b in range(B)])

    def _allowed_parts(self, num_frames: int, with_causal: bool) -> list[Tensor]:
        parts: list[Tensor] = []
        if self.padding is not None:
            parts.append(self.padding[:, None, None, :])
        if self.allowed is not None:
            parts.append(self.allowed)
        if self.causal and with_causal:
            device = next((m.device for m in (self.padding, self.allowed, self.bias) if m is not None), None)
            parts.append(_past(slice(0, num_frames), num_frames, device)[None, None])
        return parts

    def rows_without_keys(self, num_frames: int) -> Tensor | None:
        """Return which rows may attend no key, bool [B or 1, H or 1, T or 1]; None if every row has one."""
        if not self.restricts_keys:
            return None
        if self.allowed is not None or self.bias is not None:
            attended = None if self.bias is None else self.bias != float("-inf")
            for allowed in self._allowed_parts(num_frames, with_causal=True):
                attended = allowed if attended is None else attended & allowed
            assert attended is not None
            return ~attended.any(-1)
        assert self.padding is not None
        attended = self.padding.cumsum(1) > 0 if self.causal else self.padding.any(1, keepdim=True)
        return ~attended[:, None]


NO_MASK = AttentionMask()


def _past(rows: slice, num_keys: int, device: torch.device | None) -> Tensor:
    """Return the causal mask, bool [I, keys]: True if the key is not later than the row."""
    return torch.arange(num_keys, device=device) <= torch.arange(rows.start, rows.stop, device=device)[:, None]


def _row_max(bias: Tensor) -> Tensor:
    """Return the largest bias of each row. Subtracting it leaves softmax unchanged and keeps the log-sum-exp small.

    Without this, the scores of a row of nothing but -1e9 differ by less than the resolution of float32.
    """
    return bias.amax(-1, keepdim=True).clamp(min=torch.finfo(bias.dtype).min).detach()


def _add_unbroadcast(dbias: Tensor, ds: Tensor, recording: int, heads: slice, rows: slice) -> None:
    """Add a tile's dS to the gradient of a bias [B, H, T, T], summed over the axes along which it was broadcast."""
    tile = dbias[recording if dbias.shape[0] > 1 else 0]
    for axis, part in enumerate((heads, rows, slice(0, ds.shape[-1]))):
        if tile.shape[axis] > 1:
            tile = tile.narrow(axis, part.start, part.stop - part.start)
        else:
            ds = ds.sum(axis, keepdim=True)
    tile.add_(ds)


def _cut(mask: Tensor, recording: int, heads: slice, rows: slice, keys: slice) -> Tensor:
    """Return the tile of a mask [B, H, T, T]; axes of length one, which broadcast, are kept."""
    mask = mask[recording if mask.shape[0] > 1 else 0]
    for axis, part in enumerate((heads, rows, keys)):
        if mask.shape[axis] > 1:
            mask = mask.narrow(axis, part.start, part.stop - part.start)
    return mask
