"""The differentiable convolutions of a batch, without padding, on a CPU.

As in `frontend_batched` the recordings are one long waveform (`packed_waveforms`), and if the first convolution has a
GroupNorm over time, each recording has weights of its own, with the norm folded in by the moments of its windows. The
moments are constants of the waveform, so the gradients of the convolution and of the norm flow through the folding: the
norm needs no pass of its own in the backward either.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.encoder.frontend import fold_group_norm, grid_of, layer_norm, norm_of
from w2v_attn.encoder.packed_waveforms import PackedWaveforms, WaveformTile, apply_recording_weights, window_moments
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.ops.strided import StridedConvolution


class TrainableConvolutions:
    """The feature extractor of a Hugging Face model, differentiable by its weights but not by the waveforms."""

    def __init__(self, feature_extractor: Any):
        self._layers = feature_extractor.conv_layers
        self._grid = grid_of(self._layers)

    def __call__(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Return the packed frames, [ΣT, C], of waveforms, float [samples] each."""
        pack = PackedWaveforms.of(waveforms, self._grid)
        first, *rest = self._layers
        weights = _folded(first, pack)
        parts = []
        for tile in pack.tiles:
            frames = _first_frames(first, pack, tile, weights)
            for layer in rest:
                frames = _convolved(layer, frames)
            parts.append(frames[tile.kept])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _folded(layer: Any, pack: PackedWaveforms) -> Tensor | None:
    """Return the convolution with its group norm folded in, [R, kernel + 1, C], the bias last; None without a norm."""
    conv, norm = layer.conv, norm_of(layer)
    if not isinstance(norm, nn.GroupNorm):
        return None
    with torch.no_grad():
        moments = window_moments(pack)
    weight, bias = fold_group_norm(*moments, conv, norm)
    if conv.bias is not None:
        bias = bias + 0.0 * conv.bias  # it cancels in the norm; DistributedDataParallel waits for its gradient
    return torch.cat((weight, bias.unsqueeze(-1)), -1).mT.to(softmax_dtype(conv.weight))


def _first_frames(layer: Any, pack: PackedWaveforms, tile: WaveformTile, weights: Tensor | None) -> Tensor:
    """Return the output of the first convolution for a tile, [T, C]."""
    if weights is None:
        return _convolved(layer, pack.samples_of(tile)[:, None])
    return layer.activation(apply_recording_weights(pack, tile, weights))


def _convolved(layer: Any, frames: Tensor) -> Tensor:
    """Return the output of a layer, [(T − kernel) // stride + 1, out], for frames [T, in]."""
    conv, norm = layer.conv, norm_of(layer)
    frames = StridedConvolution.apply(frames, conv.weight, conv.bias, conv.stride[0])
    return layer.activation(frames if norm is None else layer_norm(frames, norm))
