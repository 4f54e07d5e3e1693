"""The convolutions over several recordings at once, for accelerators: no launch is for one recording alone.

The recordings go through the convolutions as the one long waveform of their `pack`, a piece of it after the other.
Where the first one has a GroupNorm over time, each recording has weights of its own, see `frontend`; it is then a
batched product, the windows of a block with the weights of the recording that the block is of.

Where `fusions` serve, a convolution and what follows it are one launch, or two with a LayerNorm between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.encoder.frontend import (
    Convolution,
    Ending,
    FeatureExtractor,
    convolution_of,
    fold_group_norm,
    norm_of,
    weight_of,
)
from w2v_attn.encoder.pack import Pack, Piece, own_products, window_moments
from w2v_attn.ops import fusions
from w2v_attn.ops.numerics import softmax_dtype


def pays(device: torch.device) -> bool:
    """Whether recordings are taken together there; a CPU has no launches to save, but caches to stay in."""
    return device.type != "cpu"


@dataclass(frozen=True)
class FusedConvolution:
    """A convolution with what follows it. weight: [out, kernel · in]."""

    kernel: int
    stride: int
    weight: Tensor
    bias: Tensor | None
    ending: Ending

    def __call__(self, frames: Tensor) -> Tensor:
        """[T, in] -> [(T − kernel) // stride + 1, out]."""
        gelu = self.ending.norm is None and self.ending.is_gelu
        y = fusions.window_product(frames, self.kernel, self.stride, self.weight, self.bias, gelu=gelu)
        return y if gelu else fused_ending(y, self.ending, y.dtype)


def fused_ending(y: Tensor, ending: Ending, dtype: torch.dtype) -> Tensor:
    """What follows the linear part of a convolution, [T, C] in `dtype`."""
    if ending.norm is None or not ending.is_gelu:
        return ending(y).to(dtype)
    return fusions.norm_gelu(y, ending.norm, dtype)


class ConvolutionsTogether(FeatureExtractor):
    """A feature extractor over several recordings at once.

    dtype: of its products and of its frames; None: that of the weights.
    """

    def __init__(self, feature_extractor: Any, dtype: torch.dtype | None = None):
        self._dtype = feature_extractor.conv_layers[0].conv.weight.dtype if dtype is None else dtype
        super().__init__(feature_extractor)

    def __call__(self, waveforms: Sequence[Tensor]) -> Iterator[Tensor]:
        """float [samples] each, on one device -> their frames side by side, [ΣT, C], a piece after the other.

        A piece may end within a recording, and hold several.
        """
        pack = Pack.of(waveforms, self.grid)
        weights = self._normalised_weights(pack)
        for piece in pack.pieces:
            frames = self._first_frames(pack, piece, weights)
            for convolution in self._rest:
                frames = convolution(frames)
            yield frames[piece.kept]

    def _lay_out(self) -> None:
        """Lays the weights out; those of the first convolution in float32 at least, for they cost next to nothing."""
        first, *rest = self._layers
        wide, norm = softmax_dtype(first.conv.weight), norm_of(first)
        self._normalises = isinstance(norm, nn.GroupNorm)
        self._first, self._first_ending = (
            convolution_of(first, wide),
            Ending.of(first, None if self._normalises else norm),
        )
        self._first_is_fused = (
            wide == torch.float32
            and fusions.is_supported(first.conv.weight.device)
            and fusions.is_first_convolution_supported(self.grid.kernel, self.grid.windows)
        )
        self._rest = [_convolution_of(layer, self._dtype) for layer in rest]

    def _normalised_weights(self, pack: Pack) -> Tensor | None:
        """The first convolution, and its group norm, as weights of each recording, [R, kernel + 1, C].

        The bias is the last: the weight of one sample more, which is always 1; where a kernel takes them, zeros up to
        its width follow. Without such a norm all recordings have the same, R = 1, for a kernel, and None else.
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

    def _first_frames(self, pack: Pack, piece: Piece, weights: Tensor | None) -> Tensor:
        """What the first convolution makes of the samples that a piece sees, [T, C]."""
        dtype, samples = self._dtype, pack.seen(piece)
        grid, end = pack.grid, piece.end + pack.grid.margin
        count = (len(samples) - grid.kernel) // grid.stride + 1
        if weights is None:
            return self._first(samples[:, None]).to(dtype)
        if not self._first_is_fused:
            return self._first_ending(own_products(pack, piece, weights)).to(dtype)
        owners = pack.owners[piece.begin : end] if self._normalises else pack.owners.new_zeros(end - piece.begin)
        gelu = self._first_ending.norm is None and self._first_ending.is_gelu
        frames = fusions.first_convolution(
            samples, weights, owners, count=count, kernel=grid.kernel, stride=grid.stride, windows=grid.windows,
            dtype=dtype if gelu else torch.float32, gelu=gelu,
        )  # fmt: skip
        return frames if gelu else fused_ending(frames, self._first_ending, dtype)


def _convolution_of(layer: Any, dtype: torch.dtype) -> FusedConvolution | Convolution:
    """That of a Hugging Face layer, in as few launches as there can be."""
    weight, bias = weight_of(layer.conv).to(dtype), layer.conv.bias
    if not fusions.is_window_product_supported(weight, layer.conv.kernel_size[0]):
        return convolution_of(layer, dtype)
    bias = None if bias is None else bias.detach()
    return FusedConvolution(
        layer.conv.kernel_size[0], layer.conv.stride[0], weight.contiguous(), bias, Ending.of(layer, norm_of(layer))
    )
