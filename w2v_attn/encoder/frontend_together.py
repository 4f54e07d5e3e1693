"""The convolutions over several recordings at once, for accelerators: no launch is for one recording alone.

The recordings go through the convolutions as the one long waveform of their `pack`, a piece of it after the other.
Where the first one has a GroupNorm over time, each recording has weights of its own, see `frontend`; it is then a
batched product, the windows of a block with the weights of the recording that the block is of.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.attention.mathematics import softmax_dtype
from w2v_attn.encoder.frontend import FeatureExtractor, convolution_of, fold_group_norm, norm_of
from w2v_attn.encoder.pack import Pack, Piece, window_moments


def pays(device: torch.device) -> bool:
    """Whether recordings are taken together there; a CPU has no launches to save, but caches to stay in."""
    return device.type != "cpu"


class ConvolutionsTogether(FeatureExtractor):
    """A feature extractor over several recordings at once."""

    def __call__(self, waveforms: Sequence[Tensor]) -> Iterator[Tensor]:
        """float [samples] each, on one device -> their frames side by side, [ΣT, C], a piece after the other.

        They come in the dtype of the weights. A piece may end within a recording, and hold several.
        """
        self._follow()
        dtype = self._parameters[0].dtype
        pack = Pack.of(waveforms, self.grid)
        weights = self._normalised_weights(pack)
        for piece in pack.pieces:
            frames = self._first_frames(pack, piece, weights).to(dtype)
            for convolution in self._convolutions[1:]:
                frames = convolution(frames)
            yield frames[piece.kept]

    def _prepare(self) -> None:
        """Lays the weights out; those of the first convolution in float32 at least, for it costs next to nothing."""
        first, *rest = self._layers
        wide = softmax_dtype(first.conv.weight)
        self._convolutions = [convolution_of(first, wide), *(convolution_of(layer) for layer in rest)]

    def _normalised_weights(self, pack: Pack) -> Tensor | None:
        """Convolution and group norm as weights of each recording, [R, kernel + 1, C]; None without such a norm.

        The bias is the last: the weight of one sample more, which is always 1.
        """
        layer = self._layers[0]
        norm = norm_of(layer)
        if not isinstance(norm, nn.GroupNorm):
            return None
        weight, bias = fold_group_norm(*window_moments(pack), layer.conv, norm)
        return torch.cat((weight, bias.unsqueeze(-1)), -1).mT.to(softmax_dtype(layer.conv.weight))

    def _first_frames(self, pack: Pack, piece: Piece, weights: Tensor | None) -> Tensor:
        """What the first convolution makes of the samples that a piece sees, [T, C]; float32 at least."""
        samples = pack.seen(piece)
        if weights is None:
            return self._convolutions[0](samples[:, None])
        grid, end = pack.grid, piece.end + pack.grid.margin
        windows = F.pad(pack.windows(piece.begin, end), (0, 1), value=1.0)
        frames = self._layers[0].activation(torch.bmm(windows, weights[pack.owners[piece.begin : end]]))
        return frames.flatten(0, 1)[: (len(samples) - grid.kernel) // grid.stride + 1]
