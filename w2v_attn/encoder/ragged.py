"""The encoder over packed recordings: waveforms in, frames of chosen layers out, without padding.

It computes what the Hugging Face model computes, from the same parameters; the only additional memory is copies of
weights in the memory layout of oneDNN, which large models do without. A `RaggedEncoder` is valid for the state of the
model at its construction: its owner has to detect changes of the model, see `model_state.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from w2v_attn.attention import plain
from w2v_attn.checkpoints.encoder_parts import EncoderParts, encoder_parts, is_encoder
from w2v_attn.encoder import frontend, frontend_batched
from w2v_attn.encoder.blocks import TransformerBlock
from w2v_attn.encoder.frontend import Frontend, layer_norm
from w2v_attn.encoder.layers import highest_block
from w2v_attn.encoder.long_form import LongForm, batch_by_frames
from w2v_attn.ops.fourier import FourierConvolution
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.patching.activations import is_elementwise
from w2v_attn.patching.attention_blocks import GatedAttention, HuggingFaceAttention
from w2v_attn.patching.compat import encoder_contracts, frontend_contracts

# Frames of a batch of chunks.
CHUNK_FRAMES = 2000


def unsupported_reason(model: Any) -> str | None:
    """Return why this module cannot compute a model; None if it can."""
    if not is_encoder(model) or not isinstance(encoder_parts(model).blocks, nn.ModuleList):
        return f"{type(model).__name__} is not a Hugging Face encoder itself"
    reason = frontend.unsupported_reason(model)
    if reason is not None:
        return reason
    if any(plain.GLOBAL_FORWARD_HOOKS):
        return "global hooks of torch are registered for all modules"
    blocks = encoder_parts(model).blocks
    if not len(blocks):
        return "it has no blocks"
    for block in blocks:
        if not isinstance(getattr(block, "attention", None), HuggingFaceAttention) or not hasattr(
            block, "feed_forward"
        ):
            return "its blocks are not attention and feed-forward alone"
        if reason := block.attention.unsupported_reason():
            return reason
    for contract, module in chain(frontend_contracts(model), encoder_contracts(encoder_parts(model).encoder)):
        if differences := contract.differences(module):
            return f"its {type(module).__name__} differs from the supported one: {'; '.join(differences)}"
    if not all(is_elementwise(block.feed_forward.intermediate_act_fn) for block in blocks):
        return "the activation of its feed-forward is not a known elementwise function"
    for name, module in model.named_modules():
        if reason := _module_reason(name.rpartition(".")[2], module):
            return f"{reason}: {name or type(module).__name__}"
    return None


# The classes of torch that modules with these names must have, so that their parameters can be used without a call.
_ROLES = (
    ("dropout", (nn.Dropout, nn.Identity)),  # nothing in evaluation
    ("norm", (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d)),
    ("proj", (nn.Linear,)),
    ("projection", (nn.Linear,)),
    ("dense", (nn.Linear,)),
)


def _module_reason(name: str, module: Any) -> str | None:
    """Return why the parameters of a module cannot be used without calling it; None if they can.

    transformers leaves hooks of its own after hidden states were requested; these have no effect here.

    Args:
        name: Name of the module without its parents.
        module: The module.
    """
    cls = type(module)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
        return "hooks are registered on a module"
    if "forward" in vars(module):
        return "another forward was assigned to a module"
    if not plain.has_plain_parameters(module):
        return "the weights of a module are of a special class, as quantised weights are"
    if parametrize.is_parametrized(module):
        known = all(
            type(one) is parametrizations._WeightNorm
            for parametrization in module.parametrizations.values()
            for one in parametrization
        )
        return None if known and isinstance(module, nn.Conv1d) else "a parametrization has to be computed"
    if not cls.__module__.startswith(("torch.nn.", "transformers.", "w2v_attn.")):
        return f"a module has the unknown class {cls.__module__}.{cls.__qualname__}"
    if (origin := plain.replaced_forward(cls)) is not None:
        return f"the forward of {cls.__qualname__} was replaced by one of {origin}"
    is_torchs = cls.__module__.startswith("torch.nn.")
    if is_torchs and any(name.endswith(role) and cls not in classes for role, classes in _ROLES):
        return f"a module of this name is not a {cls.__qualname__} in supported models"
    return None


class Positions(Protocol):
    """The addition of positional embeddings to the frames before the blocks."""

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return packed frames, [ΣT, C], plus their embeddings, in their dtype."""
        ...


class FourierPositions:
    """A positional embedding that is one convolution, by Fourier transform over all recordings."""

    def __init__(self, convolution: FourierConvolution):
        self._convolution = convolution

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `Positions`."""
        return self._convolution(frames, lengths).add_(frames)


class ModulePositions:
    """A positional embedding computed by its Hugging Face module, one recording at a time."""

    def __init__(self, parts: EncoderParts, dtype: torch.dtype):
        self._module, self._adds, self._dtype = parts.positions, parts.positions_add, dtype

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `Positions`."""
        found = [self._module(part.to(self._dtype)[None])[0] for part in frames.split(list(lengths))]
        found = torch.cat(found).to(frames.dtype)
        return found if self._adds else found.add_(frames)


def build_positions(parts: EncoderParts, *, wide: torch.dtype, dtype: torch.dtype) -> Positions:
    """Return the addition of the positional embeddings of a Hugging Face encoder.

    Args:
        parts: The parts of the encoder.
        wide: Dtype of the frames.
        dtype: Dtype of the module.
    """
    fourier = FourierConvolution.of(parts.positions, wide, removed=1 if parts.positions_add else None)
    return ModulePositions(parts, dtype) if fourier is None else FourierPositions(fourier)


class RaggedEncoder:
    """A Hugging Face encoder with the attention of this package, over packed recordings.

    Args:
        model: A model of a supported family, in evaluation mode; `unsupported_reason` must return None for it.
        prepack: Whether to copy the weights of the blocks into the layouts that are multiplied fastest, which takes as
            much memory as they do; else they are used where they are.
    """

    def __init__(self, model: Any, *, prepack: bool = True):
        parts = encoder_parts(model)
        self.prepack = prepack
        self._model, self._encoder, self._norm = model, parts.encoder, parts.norm
        self._wide = softmax_dtype(torch.empty(0, dtype=model.dtype))
        self._norm_first = parts.norm_first
        # SEW's blocks run over averages of 2 frames, or of another number.
        self._squeezes = hasattr(parts.encoder, "upsample")
        self._squeeze: int = parts.encoder.upsample.squeeze_factor if self._squeezes else 1
        self._frontend = Frontend(model)
        self._batched_convolutions: frontend_batched.BatchedConvolutions | None = None
        if frontend_batched.is_batching_faster(model.device):
            self._batched_convolutions = frontend_batched.BatchedConvolutions(parts.feature_encoder)
        self._positions = build_positions(parts, wide=self._wide, dtype=model.dtype)
        first = parts.blocks[0].attention
        table = first.table() if isinstance(first, GatedAttention) else None
        following = [*(layer.layer_norm for layer in parts.blocks[1:]), None] if self._norm_first else repeat(None)
        self._blocks = [
            TransformerBlock(layer, norm_first=self._norm_first, next_norm=norm, table=table, prepack=prepack)
            for layer, norm in zip(parts.blocks, following, strict=False)
        ]

    def run(
        self, waveforms: Iterable[Tensor], layers: Sequence[str], *, long_form: LongForm, frame_rate: float
    ) -> list[dict[str, Tensor]]:
        """Return for each waveform a dictionary from layer name to [frames, channels] in the model's dtype.

        Several threads may call it at the same time.

        Args:
            waveforms: Model inputs, [samples] each, on the model's device; iterated once.
            layers: Valid names in the order of computation; nothing above the highest of them is computed.
            long_form: How long recordings are processed.
            frame_rate: Frames per second in the blocks, to convert the seconds of `long_form`.
        """
        embedded, lengths = self._embed(waveforms)
        found = [dict[str, Tensor]() for _ in lengths]
        counts = [length // self._squeeze for length in lengths]
        # No variable keeps frames alive that are not needed any more: an hour of them is half a gigabyte.
        for name, layer in self._layers(self._block_input(embedded, lengths), counts, layers, long_form, frame_rate):
            for features, part in zip(found, layer.to(self._model.dtype).split(counts), strict=True):
                features[name] = part
        if "final" in layers:
            for features, length in zip(found, lengths, strict=True):
                features["final"] = self._model_output(features["final"], length)
        return found

    def _layers(
        self, x: Tensor, lengths: list[int], layers: Sequence[str], long_form: LongForm, frame_rate: float
    ) -> Iterable[tuple[str, Tensor]]:
        """Yield (name, [ΣT, C]) for each requested layer, from the input of the blocks."""
        embed = [("embed", x)] if "embed" in layers else []
        if long_form.kind == "chunked":
            return chain(embed, self._run_chunked(x, lengths, layers, long_form, frame_rate))
        reach = round(long_form.seconds * frame_rate / 2) if long_form.kind == "sliding_window" else None
        return chain(embed, self._run_blocks(x, lengths, layers, reach))

    def _run_chunked(
        self, x: Tensor, lengths: list[int], layers: Sequence[str], long_form: LongForm, frame_rate: float
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the same as `_run_blocks`, computed over overlapping chunks of long recordings."""
        chunks = list(long_form.chunks(lengths, frame_rate))
        results: dict[str, Tensor] = {}
        for batch in batch_by_frames(chunks, lambda chunk: chunk.end - chunk.begin, CHUNK_FRAMES):
            packed = torch.cat([x[chunk.begin : chunk.end] for chunk in batch])
            sizes = [chunk.end - chunk.begin for chunk in batch]
            for name, layer in self._run_blocks(packed, sizes, layers, None):
                if name not in results:
                    results[name] = layer.new_empty(len(x), layer.shape[1])
                for chunk, part in zip(batch, layer.split(sizes), strict=True):
                    results[name][chunk.first : chunk.last] = part[chunk.first - chunk.begin : chunk.last - chunk.begin]
        yield from results.items()

    def _run_blocks(
        self, x: Tensor, lengths: list[int], layers: Sequence[str], reach: int | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, [ΣT, C]) for each requested block and `final`; blocks above the highest do not run."""
        h: Tensor | None = None
        name = "embed"
        for number, block in enumerate(self._blocks[: highest_block(layers, len(self._blocks))], 1):
            x, h = block(x, lengths, reach=reach, block_input=h, overwrite=name not in layers)
            name = f"layer_{number:02d}"
            if name in layers:
                yield name, x
        if "final" in layers:
            # A caller who writes into one layer must not change another one.
            same = x.clone() if name in layers and not self._squeezes else x
            yield "final", layer_norm(x, self._norm) if self._norm_first else same

    def _embed(self, waveforms: Iterable[Tensor]) -> tuple[list[Tensor], list[int]]:
        """Return the frames of all recordings, as tensors [T, C] or one tensor [ΣT, C], and the length of each."""
        if self._batched_convolutions is not None:
            waveforms = list(waveforms)
            lengths = [self._frontend.count_frames(len(waveform)) for waveform in waveforms]
            return [self._frontend.project(self._batched_convolutions(waveforms), sum(lengths))], lengths
        embedded = [self._frontend(waveform) for waveform in waveforms]
        return embedded, [len(frames) for frames in embedded]

    def _block_input(self, embedded: list[Tensor], lengths: list[int]) -> Tensor:
        """Return the input of the blocks, [ΣT, C], from the frames of all recordings; clears the list."""
        x = self._add_positions(embedded, lengths)
        return x if self._norm_first else layer_norm(x, self._norm)

    def _add_positions(self, embedded: list[Tensor], lengths: list[int]) -> Tensor:
        frames = embedded[0] if len(embedded) == 1 else torch.cat(embedded)
        embedded.clear()
        if not self._squeezes:
            return self._positions(frames, lengths)
        parts = []
        for part in frames.split(lengths):
            channels_first = part.to(self._model.dtype).T[None]
            positions = self._encoder.pos_conv_embed(channels_first)
            pooled = self._encoder.pool(channels_first)
            count = min(positions.shape[-1], pooled.shape[-1])
            parts.append((pooled[..., :count].to(self._wide) + positions[..., :count])[0].T)
        return torch.cat(parts)

    def _model_output(self, frames: Tensor, length: int) -> Tensor:
        """Return the output of the model after its blocks; `length`: frames of the recording before them."""
        if self._squeezes:
            frames = self._encoder.upsample(frames[None])[0]
            frames = F.pad(frames, (0, 0, 0, max(length - len(frames), 0)))
        adapter = getattr(self._model, "adapter", None)
        return frames if adapter is None else adapter(frames[None])[0]
