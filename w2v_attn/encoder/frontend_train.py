"""The convolutions of a batch while they learn, each recording for itself, on a CPU.

As in `frontend_together` the recordings are one long waveform, their `pack`, and where the first convolution has a
GroupNorm over time, each recording has weights of its own: convolution and norm in one, by the moments of its windows.
These are constants of the waveform, so the gradients of the convolution and of the norm come through the folding: the
norm needs no pass of its own in the backward either.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.encoder.frontend import fold_group_norm, grid_of, layer_norm, norm_of
from w2v_attn.encoder.pack import Pack, Piece, own_products, window_moments
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.ops.strided import StridedConvolution


class LearningConvolutions:
    """The feature extractor of a Hugging Face model, differentiable by its weights but not by the waveforms."""

    def __init__(self, feature_extractor: Any):
        self._layers = feature_extractor.conv_layers
        self._grid = grid_of(self._layers)

    def __call__(self, waveforms: Sequence[Tensor]) -> Tensor:
        """float [samples] each -> their frames side by side, [ΣT, C]."""
        pack = Pack.of(waveforms, self._grid)
        first, *rest = self._layers
        weights = _folded(first, pack)
        parts = []
        for piece in pack.pieces:
            frames = _first_frames(first, pack, piece, weights)
            for layer in rest:
                frames = _convolved(layer, frames)
            parts.append(frames[piece.kept])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _folded(layer: Any, pack: Pack) -> Tensor | None:
    """Convolution and group norm as weights of each recording, the bias as the last, [R, kernel + 1, C]; or None."""
    conv, norm = layer.conv, norm_of(layer)
    if not isinstance(norm, nn.GroupNorm):
        return None
    with torch.no_grad():
        moments = window_moments(pack)
    weight, bias = fold_group_norm(*moments, conv, norm)
    if conv.bias is not None:
        bias = bias + 0.0 * conv.bias  # the norm takes it off; DistributedDataParallel waits for its gradient
    return torch.cat((weight, bias.unsqueeze(-1)), -1).mT.to(softmax_dtype(conv.weight))


def _first_frames(layer: Any, pack: Pack, piece: Piece, weights: Tensor | None) -> Tensor:
    """What the first convolution makes of the samples that a piece sees, [T, C]."""
    if weights is None:
        return _convolved(layer, pack.seen(piece)[:, None])
    return layer.activation(own_products(pack, piece, weights))


def _convolved(layer: Any, frames: Tensor) -> Tensor:
    """[T, in] -> [(T − kernel) // stride + 1, out]."""
    conv, norm = layer.conv, norm_of(layer)
    frames = StridedConvolution.apply(frames, conv.weight, conv.bias, conv.stride[0])
    return layer.activation(frames if norm is None else layer_norm(frames, norm))
