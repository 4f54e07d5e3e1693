"""Which keys a query may attend, in one form for every backend."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2v_attn.attention.mathematics import Adder
from w2v_attn.attention.relative import RelativePositions
from w2v_attn.ops.numerics import softmax_dtype


class Added(NamedTuple):
    """The tensors that are added to the scores, or make up what is; or, in the same shapes, their gradients."""

    bias: Any = None
    table: Any = None
    gate: Any = None
    queries: Any = None
    vectors: Any = None

    @classmethod
    def concatenate(cls, parts: Sequence["Added"]) -> "Added":
        """The gradients of recordings that lie side by side: each its own gates and queries, all the same table."""

        def joined(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            if any(one is None for one in found):
                return None
            return torch.cat(found, 2) if name in ("gate", "queries") else torch.stack(found).sum(0)

        return cls(**{name: joined(name) for name in cls._fields})


@dataclass(frozen=True)
class AttentionMask:
    """Everything that is added to or cut out of the scores. In every boolean, True = attend.

    padding: bool [B, T], True = a real frame; a key that is not real is attended by nobody.
    allowed: bool [B or 1, H or 1, T or 1, T or 1], True = this query may attend this key.
    bias: float of such a shape, added to the scores; −inf forbids.
    causal: a query attends itself and what came before.
    lengths: recordings lie side by side in one row of frames, so many frames each, and attend themselves alone.
    positions: what relative positions add to the scores.
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
        """The mask for hidden states `x` [B, T, C], from what a caller gives.

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
    def forbids(self) -> bool:
        """Whether some row might be left without a key."""
        return self.padding is not None or self.allowed is not None or self.bias is not None

    def only_padding(self) -> bool:
        return self.allowed is None and self.bias is None and self.positions is None

    @property
    def added(self) -> Added:
        """What is added to the scores, as the tensors that autograd functions take."""
        if self.positions is None:
            return Added(self.bias)
        return Added(self.bias, **{name: getattr(self.positions, name) for name in Added._fields[1:]})

    def with_positions(self, positions: RelativePositions) -> "AttentionMask":
        """The same, and this added to the scores."""
        return replace(self, positions=positions)

    def of(self, added: Sequence[Tensor | None]) -> "AttentionMask":
        """The same with other tensors in the place of `added`."""
        bias, *tensors = added
        positions = self.positions
        if positions is not None:
            positions = replace(positions, **dict(zip(Added._fields[1:], tensors, strict=True)))
        return replace(self, bias=bias, positions=positions)

    @property
    def limits(self) -> tuple[Tensor | None, Tensor | None]:
        """padding and allowed: the tensors that are not added to the scores."""
        return self.padding, self.allowed

    def with_limits(self, padding: Tensor | None, allowed: Tensor | None) -> "AttentionMask":
        """The same with these tensors in the place of `limits`."""
        return replace(self, padding=padding, allowed=allowed)

    def without_tensors(self) -> "AttentionMask":
        """The same without its tensors: autograd functions save those, so that a change before backward is noticed."""
        return self.with_limits(None, None).of(Added())

    @property
    def recordings(self) -> list[slice]:
        """Where each of the recordings that lie side by side is among the frames."""
        assert self.lengths is not None
        ends = accumulate(self.lengths)
        return [slice(end - length, end) for length, end in zip(self.lengths, ends, strict=True)]

    def frames(self, part: slice) -> "AttentionMask":
        """The mask of one of the recordings that lie side by side, which has these frames."""
        assert not self.forbids
        assert not self.causal
        return NO_MASK if self.positions is None else AttentionMask(positions=self.positions.frames(part))

    def key_counts(self, num_recordings: int, num_frames: int) -> list[int]:
        """For each recording, how many leading keys hold all the real ones: the others are never touched.

        Only where reading the mask costs nothing. On an accelerator it would make the host wait, so all are taken.
        """
        if self.padding is None or self.padding.device.type != "cpu" or num_frames == 0:
            return [num_frames] * num_recordings
        last_real = torch.where(self.padding, torch.arange(1, num_frames + 1, device=self.padding.device), 0).amax(1)
        return last_real.tolist()

    def tile(
        self, recording: int, heads: slice, rows: slice, num_keys: int, *, like: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """(bias, allowed) of some rows against the first `num_keys` keys, each [1 or H, 1 or I, 1 or keys] or None.

        like: the queries. The bias has the dtype of their scores: a narrower one would round what is taken off it.
        What positions add is not in the bias: `adder` has it.
        """
        keys = slice(0, num_keys)
        parts = []
        if self.padding is not None:
            real = self.padding[recording, keys]
            # A batch is padded at the end as a rule: then the keys that are left are all real.
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
        reach = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
        return bias - _largest(reach), allowed

    def adder(self, recording: int, heads: slice, rows: slice, num_keys: int) -> Adder | None:
        """Adds to the scores of such a tile what positions do; None where they do nothing."""
        if self.positions is None:
            return None
        keys = slice(0, num_keys)
        return partial(self.positions.add_to, recording=recording, heads=heads, rows=rows, keys=keys)

    def zeros(self, needs: Sequence[bool], dtype: torch.dtype) -> Added:
        """Gradients of what is added to the scores, to be added to; None where none is needed."""
        shapes = zip(self.added, needs, strict=True)
        return Added(*(torch.zeros_like(x, dtype=dtype) if x is not None and need else None for x, need in shapes))

    def tile_backward(self, ds: Tensor, recording: int, heads: slice, rows: slice, gradients: Added) -> None:
        """Adds a tile's share to the gradients of what was added to its scores. ds: [H, I, keys], dS of step (3)."""
        if gradients.bias is not None:
            _add_where_it_came_from(gradients.bias, ds, recording, heads, rows)
        if self.positions is not None and any(gradient is not None for gradient in gradients[1:]):
            shares = {f"d{name}": gradient for name, gradient in zip(Added._fields[1:], gradients[1:], strict=True)}
            self.positions.tile_backward(ds, recording, heads, rows, **shares)

    def added_backward(self, ds: Tensor, needs: Sequence[bool]) -> Added:
        """The gradients of what was added to the scores, from all of dS, [B, H, T, T]."""
        gradients = self.zeros(needs, ds.dtype)
        for recording, ds_HIT in enumerate(ds):
            self.tile_backward(ds_HIT, recording, slice(0, ds.shape[1]), slice(0, ds.shape[2]), gradients)
        return gradients

    def as_bias(self, q: Tensor, dtype: torch.dtype, *, with_causal: bool = True) -> Tensor | None:
        """All of it as one additive tensor for a kernel, [B or 1, H or 1, T or 1, T]; None where nothing is masked.

        q: the queries that it is for, [B, H, T, D].

        What is forbidden is the most negative finite number: it leaves exp(S − max) at exactly 0, and a row without
        any key stays finite inside the kernel.
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
            total = (total - _largest(total)).clamp(min=lowest)
        if self.positions is not None:
            total = (total + self._all_positions(q, dtype)).clamp(min=lowest)
        return total.expand(*total.shape[:3], num_frames)

    def _all_positions(self, q: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, H, T, T]."""
        assert self.positions is not None
        B, H, T, _ = q.shape
        heads, frames = slice(0, H), slice(0, T)
        return torch.stack([self.positions.tile(b, heads, frames, frames, dtype) for b in range(B)])

    def _allowed_parts(self, num_frames: int, with_causal: bool) -> list[Tensor]:
        parts = []
        if self.padding is not None:
            parts.append(self.padding[:, None, None, :])
        if self.allowed is not None:
            parts.append(self.allowed)
        if self.causal and with_causal:
            device = next((m.device for m in (self.padding, self.allowed, self.bias) if m is not None), None)
            parts.append(_past(slice(0, num_frames), num_frames, device)[None, None])
        return parts

    def rows_without_keys(self, num_frames: int) -> Tensor | None:
        """bool [B or 1, H or 1, T or 1]: rows that may attend no key. None where there can be none."""
        if not self.forbids:
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
    """bool [I, keys]: True where the key is not after the row."""
    return torch.arange(num_keys, device=device) <= torch.arange(rows.start, rows.stop, device=device)[:, None]


def _largest(bias: Tensor) -> Tensor:
    """The largest bias of each row, to be taken off it: softmax does not change, and the log-sum-exp stays small.

    Without it, a row of nothing but -1e9 has scores that differ by less than float32 can tell from each other there.
    """
    return bias.amax(-1, keepdim=True).clamp(min=torch.finfo(bias.dtype).min).detach()


def _add_where_it_came_from(dbias: Tensor, ds: Tensor, recording: int, heads: slice, rows: slice) -> None:
    """Adds a tile's dS to the gradient of a bias [B, H, T, T], summed over the axes along which it was broadcast."""
    share = dbias[recording if dbias.shape[0] > 1 else 0]
    for axis, part in enumerate((heads, rows, slice(0, ds.shape[-1]))):
        if share.shape[axis] > 1:
            share = share.narrow(axis, part.start, part.stop - part.start)
        else:
            ds = ds.sum(axis, keepdim=True)
    share.add_(ds)


def _cut(mask: Tensor, recording: int, heads: slice, rows: slice, keys: slice) -> Tensor:
    """[B, H, T, T] -> the tile, leaving axes of length one, which broadcast, as they are."""
    mask = mask[recording if mask.shape[0] > 1 else 0]
    for axis, part in enumerate((heads, rows, keys)):
        if mask.shape[axis] > 1:
            mask = mask.narrow(axis, part.start, part.stop - part.start)
    return mask
