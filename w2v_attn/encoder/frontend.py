"""A waveform becomes frames: the convolutions as matrix products, in blocks that stay in a cache, and the projection.

Frames lie channels last, [T, C]. A convolution of kernel k and stride s is then a product with the windows of k frames
that begin every s frames: rows of k·C numbers, which overlap in memory. Those of kernel 3 and stride 2 take fewer
operations; see `winograd`. A waveform goes through all convolutions a block at a time, so that memory does not grow
with it but for what comes out.

GroupNorm over time (wav2vec2-base and its like) needs no pass of its own. The first convolution is linear in its
windows x: y_c = w_c · x. With m the mean window of a recording and C the centred second moment of its windows, channel
c has the mean w_c · m and the variance w_cᵀ C w_c; both go into weights of that recording, and convolution, norm and
GELU are one product. m and C take only the waveform, in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.encoder import model_state
from w2v_attn.encoder.pack import Grid
from w2v_attn.ops import gemm
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.ops.strided import im2col
from w2v_attn.ops.winograd import Winograd
from w2v_attn.patching.activations import is_elementwise, is_gelu

# Frames that leave the convolutions together: four seconds, so that the last products are not thin.
CPU_BLOCK = 200
# Until a frame is this many samples from the next, the convolutions take about so many of these frames at once: a
# second, 6.5 MB of the widest frames of a base model.
WIDE_HOP, WIDE_BLOCK = 20, 800
# Windows whose second moment is added up at once: 5 MB of float64.
MOMENT_WINDOWS = 1 << 16
# And windows whose channels are: 17 MB on a base model.
VARIANCE_WINDOWS = 1 << 12


@dataclass(frozen=True)
class Ending:
    """What follows the linear part of a convolution. is_gelu: whether the activation is the exact GELU."""

    norm: nn.LayerNorm | None
    activation: Any
    is_gelu: bool

    @classmethod
    def of(cls, layer: Any, norm: Any) -> "Ending":
        """That of a Hugging Face layer, with this norm."""
        return cls(norm, layer.activation, is_gelu(layer.activation))

    def __call__(self, y: Tensor) -> Tensor:
        """[T, out] -> [T, out], in the memory of y where that is possible."""
        if self.norm is not None:
            y = layer_norm(y, self.norm)
        return torch.ops.aten.gelu_(y) if self.is_gelu else self.activation(y)


@dataclass(frozen=True)
class Convolution:
    """One convolution with what follows it. linear: its weight as [out, kernel · in]."""

    kernel: int
    stride: int
    linear: gemm.PrepackedLinear | gemm.PlainLinear
    ending: Ending

    def takes(self, count: int) -> int:
        """Of how many frames at least `count` come out."""
        return (count - 1) * self.stride + self.kernel

    def __call__(self, frames: Tensor) -> Tensor:
        """[T, in] -> [(T − kernel) // stride + 1, out]."""
        windows = im2col(frames, self.kernel, self.stride)
        if self.ending.norm is None and self.ending.is_gelu:
            return self.linear(windows, gelu=True)
        return self.ending(self.linear(windows))


@dataclass(frozen=True)
class FewerProducts:
    """One convolution of kernel 3 and stride 2 with what follows it."""

    linear: Winograd
    ending: Ending

    def takes(self, count: int) -> int:
        """Of how many frames at least `count` come out."""
        return self.linear.frames_needed(count)

    def __call__(self, frames: Tensor) -> Tensor:
        """[T, in] -> [at least the count that takes T, out]."""
        return self.ending(self.linear(frames))


Step = Convolution | FewerProducts


def _taken(steps: Sequence[Step], count: int) -> int:
    """Of how many frames at least `count` come out of these convolutions, one after the other."""
    for step in reversed(steps):
        count = step.takes(count)
    return count


def _through(steps: Iterable[Step], frames: Tensor) -> Tensor:
    """Frames after these convolutions."""
    for step in steps:
        frames = step(frames)
    return frames


def _parts(waveform: Tensor, grid: Grid, frames: int) -> Iterator[Tensor]:
    """The samples that each so many frames are made of."""
    count = grid.count_frames(len(waveform))
    for begin in range(0, count, frames):
        end = min(begin + frames, count)
        yield waveform[begin * grid.hop : (end - 1) * grid.hop + grid.field]


def grid_of(layers: Iterable[Any]) -> Grid:
    """What Hugging Face's layers of convolutions make of samples."""
    return Grid.of([(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in layers])


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm in the dtype of x, whatever that of its parameters: [..., C]."""
    weight, bias = (None if p is None else p.to(x.dtype) for p in (norm.weight, norm.bias))
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


class FeatureExtractor(ABC):
    """That of a Hugging Face model, with copies of its weights as they were at the last `follow`."""

    def __init__(self, feature_extractor: Any):
        self._module, self._layers = feature_extractor, feature_extractor.conv_layers
        self.grid = grid_of(self._layers)
        self._checksum: Any = None
        self.follow()

    def follow(self) -> None:
        """Lays the weights out where they are others than those that were."""
        on_cpu = self._layers[0].conv.weight.device.type == "cpu"
        # On an accelerator it takes less than to find out, for which the host would wait.
        checksum = model_state.checksum(self._module.parameters()) if on_cpu else None
        if checksum is None or checksum != self._checksum:
            self._lay_out()
            self._checksum = checksum

    @abstractmethod
    def _lay_out(self) -> None:
        """Lays the weights out."""


class Convolutions(FeatureExtractor):
    """A feature extractor over one recording at a time."""

    def __call__(self, waveform: Tensor) -> Iterator[Tensor]:
        """float [samples] -> the frames, [T, C] in the dtype of the weights, a block after the other."""
        first = self._first_convolution(waveform)
        for block in _parts(waveform, self.grid, CPU_BLOCK):
            count = self.grid.count_frames(len(block))
            yield _through(self._narrow, self._widest(first, block, _taken(self._narrow, count)))[:count]

    def _widest(self, first: Convolution, samples: Tensor, count: int) -> Tensor:
        """The first `count` frames that leave the convolutions over the widest frames.

        Some of them are beyond the samples: nothing that is kept sees them.
        """
        parts, size = [], -(-count // max(1, round(count / WIDE_BLOCK)))
        for begin in range(0, count, size):
            wanted = min(size, count - begin)
            needed = first.takes(_taken(self._wide, wanted))
            part = samples[begin * self._wide_hop :][:needed]
            frames = first(F.pad(part, (0, needed - len(part)))[:, None]).to(self._dtype)
            parts.append(_through(self._wide, frames)[:wanted])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _lay_out(self) -> None:
        """Lays the weights out: convolutions by seven products where that is exact and pays."""
        first, *layers = self._layers
        norm = norm_of(first)
        self._first_ending = Ending.of(first, None if isinstance(norm, nn.GroupNorm) else norm)
        weight = first.conv.weight
        self._dtype: torch.dtype = weight.dtype
        pays = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        steps = [
            _fewer_products(layer) if pays and _takes_fewer_products(layer) else convolution_of(layer)
            for layer in layers
        ]
        hops = list(accumulate((layer.conv.stride[0] for layer in self._layers), mul))
        wide = next((number for number, hop in enumerate(hops) if hop >= WIDE_HOP), len(layers))
        self._wide, self._narrow = steps[:wide], steps[wide:]
        self._wide_hop = hops[wide]

    def _first_convolution(self, waveform: Tensor) -> Convolution:
        """The first convolution, for this recording. It runs in float32 at least: it costs next to nothing."""
        layer = self._layers[0]
        conv, norm, wide = layer.conv, norm_of(layer), softmax_dtype(layer.conv.weight)
        if isinstance(norm, nn.GroupNorm):
            mean, moment = _window_moments(waveform, conv.kernel_size[0], conv.stride[0])
            exact = _variance(waveform, mean, conv) if wide == torch.float64 else None
            weight, bias = fold_group_norm(mean, moment, conv, norm, exact)
        else:
            weight, bias = conv.weight[:, 0], conv.bias
        linear = gemm.prepare_linear(weight.to(wide), None if bias is None else bias.to(wide))
        return Convolution(conv.kernel_size[0], conv.stride[0], linear, self._first_ending)


class Frontend:
    """The feature extractor and the feature projection of a Hugging Face model, over one recording at a time."""

    def __init__(self, model: Any):
        self._convolutions = Convolutions(model.feature_extractor)
        self.count_frames = self._convolutions.grid.count_frames
        self._device, self._dtype = model.device, model.dtype
        self._wide = softmax_dtype(torch.empty(0, dtype=model.dtype))
        self._norm, self._project = _projection(model)
        self._width: int = model.config.hidden_size

    def __call__(self, waveform: Tensor) -> Tensor:
        """float [samples] -> what the feature projection gives, [T, hidden size], float32 at least."""
        return self.project(self._convolutions(waveform), self.count_frames(len(waveform)))

    def project(self, blocks: Iterable[Tensor], count: int) -> Tensor:
        """What the feature projection gives for `count` frames of the convolutions, [T, C] a block, as above."""
        found = torch.empty(count, self._width, dtype=self._wide, device=self._device)
        write_blocks(map(self._project_block, blocks), found)
        return found

    def _project_block(self, frames: Tensor) -> Tensor:
        if self._norm is not None:
            frames = layer_norm(frames.to(self._wide), self._norm).to(self._dtype)
        return frames if self._project is None else self._project(frames)


def write_blocks(blocks: Iterable[Tensor], found: Tensor) -> None:
    """Blocks of frames into `found`, one after the other from its first frame on."""
    begin = 0
    for block in blocks:
        found[begin : begin + len(block)] = block
        begin += len(block)


def fold_group_norm(
    mean: Tensor, moment: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm, variance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight [..., C, kernel] and bias [..., C] of convolution and group norm together, on recordings; float64.

    mean: [..., kernel] of the windows of each recording. moment: their centred second one, [..., kernel, kernel].
    variance: [..., C] of the channels; None: what follows from the moment.
    The convolution's own bias falls out, for the norm takes the mean off.
    """
    weight = conv.weight[:, 0].double()
    if variance is None:
        variance = torch.einsum("ck,...kl,cl->...c", weight, moment, weight)
    gain = norm.weight.double() / torch.sqrt(variance.clamp(min=0.0) + norm.eps)
    return weight * gain.unsqueeze(-1), norm.bias.double() - gain * (mean @ weight.T)


def _window_moments(waveform: Tensor, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """The mean [kernel] and the centred second moment [kernel, kernel] of all windows; float64."""
    count = (len(waveform) - kernel) // stride + 1
    centre = waveform.mean(dtype=torch.float64)  # near the windows' own mean: taking it off loses no digits
    total = torch.zeros(kernel, dtype=torch.float64, device=waveform.device)
    square = torch.zeros(kernel, kernel, dtype=torch.float64, device=waveform.device)
    for begin in range(0, count, MOMENT_WINDOWS):
        end = min(begin + MOMENT_WINDOWS, count)
        samples = waveform[begin * stride : (end - 1) * stride + kernel].double() - centre
        windows = samples.unfold(0, kernel, stride).contiguous()
        total += windows.sum(0)
        square += windows.T @ windows
    mean = total / count
    return mean + centre, square / count - torch.outer(mean, mean)


def _variance(waveform: Tensor, mean: Tensor, conv: nn.Conv1d) -> Tensor:
    """The variance of each channel, [C], for models in float64.

    A filter that takes out what is loud in a recording loses digits in w_cᵀ C w_c: of speech up to five of sixteen. For
    float32 more than enough are left.
    """
    weight, total = conv.weight[:, 0], torch.zeros_like(conv.weight[:, 0, 0])
    windows = waveform.unfold(0, conv.kernel_size[0], conv.stride[0])
    for part in windows.split(VARIANCE_WINDOWS):
        total += ((part - mean) @ weight.T).square().sum(0)
    return total / len(windows)


def convolution_of(layer: Any, dtype: torch.dtype | None = None) -> Convolution:
    """That of a Hugging Face layer. dtype: of its weights; None: as they are."""
    conv = layer.conv
    dtype = conv.weight.dtype if dtype is None else dtype
    linear = gemm.prepare_linear(weight_of(conv).to(dtype), None if conv.bias is None else conv.bias.to(dtype))
    return Convolution(conv.kernel_size[0], conv.stride[0], linear, Ending.of(layer, norm_of(layer)))


def weight_of(conv: nn.Conv1d) -> Tensor:
    """The weight of a convolution as that of a product with windows of frames: [out, kernel · in]."""
    return conv.weight.detach().permute(0, 2, 1).flatten(1)


def _fewer_products(layer: Any) -> FewerProducts:
    return FewerProducts(Winograd(layer.conv.weight, layer.conv.bias), Ending.of(layer, norm_of(layer)))


def _takes_fewer_products(layer: Any) -> bool:
    return (layer.conv.kernel_size, layer.conv.stride) == ((3,), (2,))


def norm_of(layer: Any) -> Any:
    """The norm of a Hugging Face layer, if it has one."""
    return getattr(layer, "layer_norm", None)


def _projection(model: Any) -> tuple[nn.LayerNorm | None, gemm.PrepackedLinear | gemm.PlainLinear | None]:
    """The norm and the linear map between convolutions and blocks; families place and omit them differently."""
    projection = getattr(model, "feature_projection", None)
    if isinstance(projection, nn.Linear) or projection is None:  # SEW
        norm, linear = model.layer_norm, projection
    else:
        norm, linear = getattr(projection, "layer_norm", None), projection.projection
    return norm, None if linear is None else gemm.prepare_linear(linear.weight, linear.bias)


def why_not(model: Any) -> str | None:
    """What of a model's frontend this file does not know; None when it knows it all."""
    layers: Sequence[Any] = getattr(getattr(model, "feature_extractor", None), "conv_layers", ())
    if not layers:
        return "its input is not a waveform through convolutions"
    for number, layer in enumerate(layers):
        conv, norm = layer.conv, norm_of(layer)
        if type(conv) is not nn.Conv1d or conv.padding != (0,) or conv.dilation != (1,) or conv.groups != 1:
            return f"its convolution {number} is no plain one"
        whole = isinstance(norm, nn.GroupNorm) and number == 0 and norm.num_groups == norm.num_channels and norm.affine
        if norm is not None and not isinstance(norm, nn.LayerNorm) and not whole:
            return f"the norm of its convolution {number} is not known"
        if not is_elementwise(layer.activation):
            return f"the activation of its convolution {number} is not a known function of single numbers"
    return None
