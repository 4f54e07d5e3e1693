"""The frontend: convolutions as matrix products, in blocks that stay in a cache, and the feature projection.

Frames are channels last, [T, C]. A convolution of kernel k and stride s is then a product with the windows of k frames
that begin every s frames: rows of k·C numbers, which overlap in memory. Convolutions of kernel 3 and stride 2 take
fewer operations with Winograd's algorithm; see `winograd`. A waveform goes through all convolutions block by block, so
that only the memory of the result grows with its length.

GroupNorm over time (as in wav2vec2-base) needs no pass of its own. The first convolution is linear in its
windows x: y_c = w_c · x. With m the mean window of a recording and C the centred second moment of its windows, channel
c has the mean w_c · m and the variance w_cᵀ C w_c; both are folded into weights of that recording, so that
convolution, norm and GELU are one product. m and C depend on the waveform only and are computed in float64.
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

from w2v_attn.checkpoints.encoder_parts import encoder_config, encoder_parts, is_encoder
from w2v_attn.encoder import model_state
from w2v_attn.encoder.packed_waveforms import Grid
from w2v_attn.ops import gemm
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.ops.strided import im2col
from w2v_attn.ops.winograd import Winograd
from w2v_attn.patching.activations import is_elementwise, is_gelu

# Output frames of a block: four seconds, so that the last matrix products are not thin.
CPU_BLOCK = 200
# Layers whose hop is below WIDE_HOP samples are computed in smaller blocks of about WIDE_BLOCK frames at WIDE_HOP: a
# second, 6.5 MB of the widest frames of a base model.
WIDE_HOP, WIDE_BLOCK = 20, 800
# Windows of a chunk in the sum of second moments: 5 MB of float64.
MOMENT_WINDOWS = 1 << 16
# Windows of a chunk in the sum of variances: 17 MB on a base model.
VARIANCE_WINDOWS = 1 << 12


@dataclass(frozen=True)
class Epilogue:
    """The norm and the activation after the linear part of a convolution.

    Attributes:
        norm: LayerNorm, or None.
        activation: Elementwise function.
        is_gelu: Whether the activation is the exact GELU.
    """

    norm: nn.LayerNorm | None
    activation: Any
    is_gelu: bool

    @classmethod
    def of(cls, layer: Any, norm: Any) -> "Epilogue":
        """Return the epilogue of a Hugging Face layer, with this norm."""
        return cls(norm, layer.activation, is_gelu(layer.activation))

    def __call__(self, y: Tensor) -> Tensor:
        """Return the result, [T, out], in the memory of y where that is possible."""
        if self.norm is not None:
            y = layer_norm(y, self.norm)
        return torch.ops.aten.gelu_(y) if self.is_gelu else self.activation(y)


@dataclass(frozen=True)
class Convolution:
    """A convolution with its epilogue.

    Attributes:
        linear: Its weight as [out, kernel · in], and its bias.
    """

    kernel: int
    stride: int
    linear: gemm.PrepackedLinear | gemm.PlainLinear
    epilogue: Epilogue

    def input_frames(self, count: int) -> int:
        """Return how many input frames are needed for `count` output frames."""
        return (count - 1) * self.stride + self.kernel

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the output, [(T − kernel) // stride + 1, out], for frames [T, in]."""
        windows = im2col(frames, self.kernel, self.stride)
        if self.epilogue.norm is None and self.epilogue.is_gelu:
            return self.linear(windows, gelu=True)
        return self.epilogue(self.linear(windows))


@dataclass(frozen=True)
class WinogradConvolution:
    """A convolution of kernel 3 and stride 2 with its epilogue, by Winograd's algorithm."""

    linear: Winograd
    epilogue: Epilogue

    def input_frames(self, count: int) -> int:
        """Return how many input frames are needed for `count` output frames."""
        return self.linear.frames_needed(count)

    def __call__(self, frames: Tensor) -> Tensor:
        """Return [count or more, out] for `input_frames(count)` frames, [T, in]."""
        return self.epilogue(self.linear(frames))


Step = Convolution | WinogradConvolution


def _input_frames(steps: Sequence[Step], count: int) -> int:
    """Return how many input frames a sequence of convolutions needs for `count` output frames."""
    for step in reversed(steps):
        count = step.input_frames(count)
    return count


def _apply(steps: Iterable[Step], frames: Tensor) -> Tensor:
    """Return the frames after these convolutions."""
    for step in steps:
        frames = step(frames)
    return frames


def _sample_blocks(waveform: Tensor, grid: Grid, frames: int) -> Iterator[Tensor]:
    """Yield the samples for each block of this many output frames."""
    count = grid.count_frames(len(waveform))
    for begin in range(0, count, frames):
        end = min(begin + frames, count)
        yield waveform[begin * grid.hop : (end - 1) * grid.hop + grid.field]


def grid_of(layers: Iterable[Any]) -> Grid:
    """Return the grid of the convolutional layers of a Hugging Face model."""
    return Grid.of([(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in layers])


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the LayerNorm of x, [..., C], in the dtype of x, whatever the dtype of the parameters."""
    weight, bias = (None if p is None else p.to(x.dtype) for p in (norm.weight, norm.bias))
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


class ConvolutionStack(ABC):
    """The convolutions of a Hugging Face model, with copies of its weights as of the last `refresh`."""

    def __init__(self, feature_extractor: Any):
        self._module, self._layers = feature_extractor, feature_extractor.conv_layers
        self.grid = grid_of(self._layers)
        self._checksum: Any = None
        self.refresh()

    def refresh(self) -> None:
        """Prepare the weights again if they have changed."""
        on_cpu = self._layers[0].conv.weight.device.type == "cpu"
        # On an accelerator preparing them takes less than a checksum, for which the host would wait.
        checksum = model_state.checksum(self._module.parameters()) if on_cpu else None
        if checksum is None or checksum != self._checksum:
            self._prepare_weights()
            self._checksum = checksum

    @abstractmethod
    def _prepare_weights(self) -> None:
        """Prepare copies of the weights for many calls."""


class Convolutions(ConvolutionStack):
    """The convolutions of a model, over one recording at a time."""

    def __call__(self, waveform: Tensor) -> Iterator[Tensor]:
        """Yield the frames of a waveform, float [samples], in blocks [T, C] in the dtype of the weights."""
        first = self._first_convolution(waveform)
        for block in _sample_blocks(waveform, self.grid, CPU_BLOCK):
            count = self.grid.count_frames(len(block))
            yield _apply(self._narrow, self._apply_wide(first, block, _input_frames(self._narrow, count)))[:count]

    def _apply_wide(self, first: Convolution, samples: Tensor, count: int) -> Tensor:
        """Return the first `count` output frames of the layers with small hops.

        Some of these frames are beyond the samples; no frame that is kept depends on them.
        """
        parts, size = [], -(-count // max(1, round(count / WIDE_BLOCK)))
        for begin in range(0, count, size):
            wanted = min(size, count - begin)
            needed = first.input_frames(_input_frames(self._wide, wanted))
            part = samples[begin * self._wide_hop :][:needed]
            frames = first(F.pad(part, (0, needed - len(part)))[:, None]).to(self._dtype)
            parts.append(_apply(self._wide, frames)[:wanted])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _prepare_weights(self) -> None:
        """Prepare the weights, for Winograd's algorithm where that is exact and faster."""
        first, *layers = self._layers
        norm = norm_of(first)
        self._first_epilogue = Epilogue.of(first, None if isinstance(norm, nn.GroupNorm) else norm)
        weight = first.conv.weight
        self._dtype: torch.dtype = weight.dtype
        use_winograd = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        steps = [
            _winograd_convolution(layer) if use_winograd and _suits_winograd(layer) else convolution_of(layer)
            for layer in layers
        ]
        hops = list(accumulate((layer.conv.stride[0] for layer in self._layers), mul))
        wide = next((number for number, hop in enumerate(hops) if hop >= WIDE_HOP), len(layers))
        self._wide, self._narrow = steps[:wide], steps[wide:]
        self._wide_hop = hops[wide]

    def _first_convolution(self, waveform: Tensor) -> Convolution:
        """Return the first convolution for this recording, in at least float32, because its cost is negligible."""
        layer = self._layers[0]
        conv, norm, wide = layer.conv, norm_of(layer), softmax_dtype(layer.conv.weight)
        if isinstance(norm, nn.GroupNorm):
            mean, moment = _window_moments(waveform, conv.kernel_size[0], conv.stride[0])
            exact = _variance(waveform, mean, conv) if wide == torch.float64 else None
            weight, bias = fold_group_norm(mean, moment, conv, norm, exact)
        else:
            weight, bias = conv.weight[:, 0], conv.bias
        linear = gemm.prepare_linear(weight.to(wide), None if bias is None else bias.to(wide))
        return Convolution(conv.kernel_size[0], conv.stride[0], linear, self._first_epilogue)


class Frontend:
    """The convolutions and the feature projection of a Hugging Face model, over one recording at a time."""

    def __init__(self, model: Any):
        parts = encoder_parts(model)
        self._convolutions = Convolutions(parts.feature_encoder)
        self.count_frames = self._convolutions.grid.count_frames
        self._device, self._dtype = model.device, model.dtype
        self._wide = softmax_dtype(torch.empty(0, dtype=model.dtype))
        self._norm, linear = parts.projection_norm, parts.projection
        self._project = None if linear is None else gemm.prepare_linear(linear.weight, linear.bias)
        self._width: int = encoder_config(model.config).hidden_size

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return the projected features, [T, hidden size] in at least float32, of a waveform, float [samples]."""
        return self.project(self._convolutions(waveform), self.count_frames(len(waveform)))

    def project(self, blocks: Iterable[Tensor], count: int) -> Tensor:
        """Return the projected features, [count, hidden size], of blocks of frames, [T, C] each."""
        found = torch.empty(count, self._width, dtype=self._wide, device=self._device)
        write_blocks(map(self._project_block, blocks), found)
        return found

    def _project_block(self, frames: Tensor) -> Tensor:
        if self._norm is not None:
            frames = layer_norm(frames.to(self._wide), self._norm).to(self._dtype)
        return frames if self._project is None else self._project(frames)


def write_blocks(blocks: Iterable[Tensor], found: Tensor) -> None:
    """Write consecutive blocks of frames into `found`, from its first frame on."""
    begin = 0
    for block in blocks:
        found[begin : begin + len(block)] = block
        begin += len(block)


def fold_group_norm(
    mean: Tensor, moment: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm, variance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return weight [..., C, kernel] and bias [..., C], float64, of a convolution with the group norm folded in.

    The bias of the convolution cancels, because the norm subtracts the mean.

    Args:
        mean: [..., kernel], mean of the windows of each recording.
        moment: [..., kernel, kernel], their centred second moment.
        conv: The first convolution.
        norm: The group norm over time after it.
        variance: [..., C], variance of each channel; None: computed from the moment.
    """
    weight = conv.weight[:, 0].double()
    if variance is None:
        variance = torch.einsum("ck,...kl,cl->...c", weight, moment, weight)
    gain = norm.weight.double() / torch.sqrt(variance.clamp(min=0.0) + norm.eps)
    return weight * gain.unsqueeze(-1), norm.bias.double() - gain * (mean @ weight.T)


def _window_moments(waveform: Tensor, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the mean [kernel] and the centred second moment [kernel, kernel] of all windows in float64."""
    count = (len(waveform) - kernel) // stride + 1
    centre = waveform.mean(dtype=torch.float64)  # near the windows' own mean: subtracting it loses no digits
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
    """Return the variance of each channel, [C], for models in float64.

    A filter that removes the loud frequencies of a recording loses digits in w_cᵀ C w_c: for speech up to five of
    sixteen. The rest is more than enough for float32.
    """
    weight, total = conv.weight[:, 0], torch.zeros_like(conv.weight[:, 0, 0])
    windows = waveform.unfold(0, conv.kernel_size[0], conv.stride[0])
    for part in windows.split(VARIANCE_WINDOWS):
        total += ((part - mean) @ weight.T).square().sum(0)
    return total / len(windows)


def convolution_of(layer: Any, dtype: torch.dtype | None = None) -> Convolution:
    """Return the convolution of a Hugging Face layer. dtype: of its weights; None: unchanged."""
    conv = layer.conv
    dtype = conv.weight.dtype if dtype is None else dtype
    linear = gemm.prepare_linear(weight_of(conv).to(dtype), None if conv.bias is None else conv.bias.to(dtype))
    return Convolution(conv.kernel_size[0], conv.stride[0], linear, Epilogue.of(layer, norm_of(layer)))


def weight_of(conv: nn.Conv1d) -> Tensor:
    """Return the weight of a convolution for a product with windows of frames, [out, kernel · in]."""
    return conv.weight.detach().permute(0, 2, 1).flatten(1)


def _winograd_convolution(layer: Any) -> WinogradConvolution:
    return WinogradConvolution(Winograd(layer.conv.weight, layer.conv.bias), Epilogue.of(layer, norm_of(layer)))


def _suits_winograd(layer: Any) -> bool:
    return (layer.conv.kernel_size, layer.conv.stride) == ((3,), (2,))


def norm_of(layer: Any) -> Any:
    """Return the norm of a Hugging Face layer, or None."""
    return getattr(layer, "layer_norm", None)


def unsupported_reason(model: Any) -> str | None:
    """Return why this module cannot compute the frontend of a model; None if it can."""
    layers = encoder_parts(model).convolutions if is_encoder(model) else ()
    if not layers:
        return "its input is not a waveform through convolutions"
    for number, layer in enumerate(layers):
        conv, norm = layer.conv, norm_of(layer)
        if type(conv) is not nn.Conv1d or conv.padding != (0,) or conv.dilation != (1,) or conv.groups != 1:
            return f"its convolution {number} is not a torch.nn.Conv1d without padding, dilation and groups"
        whole = isinstance(norm, nn.GroupNorm) and number == 0 and norm.num_groups == norm.num_channels and norm.affine
        if norm is not None and not isinstance(norm, nn.LayerNorm) and not whole:
            return f"the norm of its convolution {number} is not supported"
        if not is_elementwise(layer.activation):
            return f"the activation of its convolution {number} is not a known elementwise function"
    return None
