"""The convolutions over packed recordings, for accelerators: the number of launches does not grow with the recordings.

The recordings go through the convolutions as one long waveform (`packed_waveforms`), tile by tile. If the first
convolution has a GroupNorm over time, each recording has weights of its own, see `frontend`; the convolution is then a
batched product of the windows of a block with the weights of its recording.

Where `fusions` are supported, a convolution and its epilogue are one launch, or two with a LayerNorm between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.encoder.frontend import (
    Convolution,
    ConvolutionStack,
    Epilogue,
    convolution_of,
    fold_group_norm,
    norm_of,
    weight_of,
)
from w2v_attn.encoder.packed_waveforms import PackedWaveforms, WaveformTile, apply_recording_weights, window_moments
from w2v_attn.ops import fusions
from w2v_attn.ops.numerics import softmax_dtype


def is_batching_faster(device: torch.device) -> bool:
    """Return whether batching recordings is faster on a device; a CPU has no launches to save, but caches to use."""
    return device.type != "cpu"


@dataclass(frozen=True)
class FusedConvolution:
    """A convolution with its epilogue in as few launches as possible.

    Attributes:
        weight: [out, kernel · in].
    """

    kernel: int
    stride: int
    weight: Tensor
    bias: Tensor | None
    epilogue: Epilogue

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the output, [(T − kernel) // stride + 1, out], for frames [T, in]."""
        gelu = self.epilogue.norm is None and self.epilogue.is_gelu
        y = fusions.window_product(frames, self.kernel, self.stride, self.weight, self.bias, gelu=gelu)
        return y if gelu else fused_epilogue(y, self.epilogue, y.dtype)


def fused_epilogue(y: Tensor, epilogue: Epilogue, dtype: torch.dtype) -> Tensor:
    """Return the result of the epilogue of a convolution, [T, C] in `dtype`."""
    if epilogue.norm is None or not epilogue.is_gelu:
        return epilogue(y).to(dtype)
    return fusions.norm_gelu(y, epilogue.norm, dtype)


class BatchedConvolutions(ConvolutionStack):
    """The convolutions of a model, over several recordings at once.

    Args:
        feature_extractor: The feature encoder of a Hugging Face model.
        dtype: Dtype of its products and of its frames; None: the dtype of the weights.
    """

    def __init__(self, feature_extractor: Any, dtype: torch.dtype | None = None):
        self._dtype = feature_extractor.conv_layers[0].conv.weight.dtype if dtype is None else dtype
        super().__init__(feature_extractor)

    def __call__(self, waveforms: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the packed frames of waveforms, [ΣT, C], tile by tile.

        A tile may contain several recordings, and may end within a recording.

        Args:
            waveforms: float [samples] each, on one device.
        """
        pack = PackedWaveforms.of(waveforms, self.grid)
        weights = self._normalised_weights(pack)
        for tile in pack.tiles:
            frames = self._first_frames(pack, tile, weights)
            for convolution in self._rest:
                frames = convolution(frames)
            yield frames[tile.kept]

    def _prepare_weights(self) -> None:
        """Prepare the weights; the first convolution is in at least float32, because its cost is negligible."""
        first, *rest = self._layers
        wide, norm = softmax_dtype(first.conv.weight), norm_of(first)
        self._normalises = isinstance(norm, nn.GroupNorm)
        self._first, self._first_epilogue = (
            convolution_of(first, wide),
            Epilogue.of(first, None if self._normalises else norm),
        )
        self._first_is_fused = (
            wide == torch.float32
            and fusions.is_supported(first.conv.weight.device)
            and fusions.is_first_convolution_supported(self.grid.kernel, self.grid.windows)
        )
        self._rest = [_convolution_of(layer, self._dtype) for layer in rest]

    def _normalised_weights(self, pack: PackedWaveforms) -> Tensor | None:
        """Return the first convolution with its group norm folded in, as weights of each recording, [R, kernel + 1, C].

        The last row is the bias: the weight of one more sample, which is always 1; for the fused kernel zeros up to its
        width follow. Without a group norm the fused kernel gets the same weights for all recordings, R = 1, and
        otherwise the result is None.
        """
        conv, norm = self._layers[0].conv, norm_of(self._layers[0])
        if isinstance(norm, nn.GroupNorm):
            weight, bias = fold_group_norm(*window_moments(pack), conv, norm)
        elif self._first_is_fused:
            weight = conv.weight[:, 0][None]
            bias = weight.new_zeros(1, weight.shape[1]) if conv.bias is None else conv.bias[None]
        else:
            return None
        weights = torch.cat((weight, bias.unsqueeze(-1)), -1).mT.to(softmax_dtype(conv.weight))
        if self._first_is_fused:
            weights = F.pad(weights, (0, 0, 0, fusions.FIRST_WIDTH - weights.shape[1]))
        return weights.contiguous()

    def _first_frames(self, pack: PackedWaveforms, tile: WaveformTile, weights: Tensor | None) -> Tensor:
        """Return the output of the first convolution for a tile, [T, C]."""
        dtype, samples = self._dtype, pack.samples_of(tile)
        grid, end = pack.grid, tile.end + pack.grid.margin
        count = (len(samples) - grid.kernel) // grid.stride + 1
        if weights is None:
            return self._first(samples[:, None]).to(dtype)
        if not self._first_is_fused:
            return self._first_epilogue(apply_recording_weights(pack, tile, weights)).to(dtype)
        owners = pack.owners[tile.begin : end] if self._normalises else pack.owners.new_zeros(end - tile.begin)
        gelu = self._first_epilogue.norm is None and self._first_epilogue.is_gelu
        frames = fusions.first_convolution(
            samples, weights, owners, count=count, kernel=grid.kernel, stride=grid.stride, windows=grid.windows,
            dtype=dtype if gelu else torch.float32, gelu=gelu,
        )  # fmt: skip
        return frames if gelu else fused_epilogue(frames, self._first_epilogue, dtype)


def _convolution_of(layer: Any, dtype: torch.dtype) -> FusedConvolution | Convolution:
    """Return the convolution of a Hugging Face layer in as few launches as possible."""
    weight, bias = weight_of(layer.conv).to(dtype), layer.conv.bias
    if not fusions.is_window_product_supported(weight, layer.conv.kernel_size[0]):
        return convolution_of(layer, dtype)
    bias = None if bias is None else bias.detach()
    return FusedConvolution(
        layer.conv.kernel_size[0], layer.conv.stride[0], weight.contiguous(), bias, Epilogue.of(layer, norm_of(layer))
    )
