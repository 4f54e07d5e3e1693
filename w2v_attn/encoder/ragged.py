"""The encoder over recordings side by side: waveforms in, frames of chosen layers out, and no padding between.

It computes what the Hugging Face model computes, from the same parameters; beside them it keeps only their copies in
the layout of oneDNN. A `RaggedEncoder` is that of a model as it was when it was made: whoever keeps one has to notice
that the model has changed, see `model_state.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from w2v_attn.attention import plain
from w2v_attn.encoder import frontend, frontend_batched
from w2v_attn.encoder.blocks import Block
from w2v_attn.encoder.frontend import Frontend, layer_norm
from w2v_attn.encoder.layers import highest_block
from w2v_attn.encoder.long_form import LongForm, batches_of
from w2v_attn.encoder.positions import positions_of
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.patching.activations import is_elementwise
from w2v_attn.patching.attention_blocks import GatedAttention, HuggingFaceAttention
from w2v_attn.patching.compat import encoder_contracts, frontend_contracts

# Frames of chunks that go through the blocks together.
CHUNK_FRAMES = 2000


def why_not(model: Any) -> str | None:
    """What of a model this file does not know; None when it can take its place."""
    if not isinstance(getattr(getattr(model, "encoder", None), "layers", None), nn.ModuleList):
        return f"{type(model).__name__} is not a Hugging Face encoder itself"
    reason = frontend.why_not(model)
    if reason is not None:
        return reason
    if any(plain.GLOBAL_FORWARD_HOOKS):
        return "hooks for all modules want to be called"
    if not len(model.encoder.layers):
        return "it has no blocks"
    for block in model.encoder.layers:
        if not isinstance(getattr(block, "attention", None), HuggingFaceAttention) or not hasattr(
            block, "feed_forward"
        ):
            return "its blocks are not attention and feed-forward alone"
        if reason := block.attention.unsupported_reason():
            return reason
    for contract, module in chain(frontend_contracts(model), encoder_contracts(model.encoder)):
        if differences := contract.differences(module):
            return f"its {type(module).__name__} is not the one that is known: {'; '.join(differences)}"
    if not all(is_elementwise(block.feed_forward.intermediate_act_fn) for block in model.encoder.layers):
        return "the activation of its feed-forward is not a known function of single numbers"
    for name, module in model.named_modules():
        if reason := _why_not_module(name.rpartition(".")[2], module):
            return f"{reason}: {name or type(module).__name__}"
    return None


# What modules of these names must be, where their class is torch's, for their parameters to be used without a call.
_ROLES = (
    ("dropout", (nn.Dropout, nn.Identity)),  # nothing in evaluation
    ("norm", (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d)),
    ("proj", (nn.Linear,)),
    ("projection", (nn.Linear,)),
    ("dense", (nn.Linear,)),
)


def _why_not_module(name: str, module: Any) -> str | None:
    """What of one module keeps its parameters from being used without calling it. name: its own, without its parents'.

    transformers' own hooks stay where hidden states were once asked for, and do nothing here.
    """
    cls = type(module)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
        return "somebody's hooks on a module want to be called"
    if "forward" in vars(module):
        return "somebody put another forward in the place of a module's class's"
    if not plain.has_plain_parameters(module):
        return "the weights of a module are of a class of their own, as quantised ones are"
    if parametrize.is_parametrized(module):
        known = all(
            type(one) is parametrizations._WeightNorm
            for parametrization in module.parametrizations.values()
            for one in parametrization
        )
        return None if known and isinstance(module, nn.Conv1d) else "a parametrization has to be computed"
    if not cls.__module__.startswith(("torch.nn.", "transformers.", "w2v_attn.")):
        return f"a module is of the class {cls.__module__}.{cls.__qualname__}, which is not known"
    if (home := plain.replaced_forward(cls)) is not None:
        return f"the forward of {cls.__qualname__} was replaced by one of {home}"
    is_torchs = cls.__module__.startswith("torch.nn.")
    if is_torchs and any(name.endswith(role) and cls not in classes for role, classes in _ROLES):
        return f"a module of this name is no {cls.__qualname__} in the models that are known"
    return None


class RaggedEncoder:
    """A Hugging Face encoder with our attention, over recordings that lie side by side.

    model: of a supported family, in evaluation mode; `why_not` must have nothing against it.
    """

    def __init__(self, model: Any):
        encoder = model.encoder
        self._model = model
        self._wide = softmax_dtype(torch.empty(0, dtype=model.dtype))
        self._norm_first = type(encoder).__name__.endswith("StableLayerNorm")
        # SEW's blocks see pairs of frames, or of another number.
        self._squeezes = hasattr(encoder, "upsample")
        self._squeeze: int = encoder.upsample.squeeze_factor if self._squeezes else 1
        self._frontend = Frontend(model)
        self._together: frontend_batched.ConvolutionsTogether | None = None
        if frontend_batched.pays(model.device):
            self._together = frontend_batched.ConvolutionsTogether(model.feature_extractor)
        self._positions = positions_of(encoder.pos_conv_embed, wide=self._wide, dtype=model.dtype)
        first = encoder.layers[0].attention
        table = first.table() if isinstance(first, GatedAttention) else None
        following = [*(layer.layer_norm for layer in encoder.layers[1:]), None] if self._norm_first else repeat(None)
        self._blocks = [
            Block(layer, norm_first=self._norm_first, next_norm=norm, table=table)
            for layer, norm in zip(encoder.layers, following, strict=False)
        ]

    def run(
        self, waveforms: Iterable[Tensor], layers: Sequence[str], *, long_form: LongForm, frame_rate: float
    ) -> list[dict[str, Tensor]]:
        """For each waveform a dictionary: name of the layer -> [frames, channels] in the model's dtype.

        waveforms: [samples] each, on the model's device, prepared as the checkpoint wants them; each is taken once.
        layers: valid names in the order of computation; nothing above the highest of them is computed.
        frame_rate: frames a second in the blocks, which the seconds of `long_form` are counted in.

        Several threads may run at once.
        """
        embedded, lengths = self._embed(waveforms)
        found = [dict[str, Tensor]() for _ in lengths]
        counts = [length // self._squeeze for length in lengths]
        # Nothing here keeps a name for frames that are done with: an hour of them is half a gigabyte.
        for name, layer in self._layers(self._enter(embedded, lengths), counts, layers, long_form, frame_rate):
            for features, part in zip(found, layer.to(self._model.dtype).split(counts), strict=True):
                features[name] = part
        if "final" in layers:
            for features, length in zip(found, lengths, strict=True):
                features["final"] = self._leave(features["final"], length)
        return found

    def _layers(
        self, x: Tensor, lengths: list[int], layers: Sequence[str], long_form: LongForm, frame_rate: float
    ) -> Iterable[tuple[str, Tensor]]:
        """(name, [ΣT, C]) of every layer that was asked for, from what enters the blocks."""
        embed = [("embed", x)] if "embed" in layers else []
        if long_form.kind == "chunked":
            return chain(embed, self._chunks_of(x, lengths, layers, long_form, frame_rate))
        reach = round(long_form.seconds * frame_rate / 2) if long_form.kind == "sliding_window" else None
        return chain(embed, self._blocks_of(x, lengths, layers, reach))

    def _chunks_of(
        self, x: Tensor, lengths: list[int], layers: Sequence[str], long_form: LongForm, frame_rate: float
    ) -> Iterator[tuple[str, Tensor]]:
        """As `_blocks_of`, over overlapping pieces of long recordings."""
        pieces = list(long_form.pieces(lengths, frame_rate))
        results: dict[str, Tensor] = {}
        for batch in batches_of(pieces, lambda piece: piece.end - piece.begin, CHUNK_FRAMES):
            heard = torch.cat([x[piece.begin : piece.end] for piece in batch])
            sizes = [piece.end - piece.begin for piece in batch]
            for name, layer in self._blocks_of(heard, sizes, layers, None):
                if name not in results:
                    results[name] = layer.new_empty(len(x), layer.shape[1])
                for piece, part in zip(batch, layer.split(sizes), strict=True):
                    results[name][piece.first : piece.last] = part[piece.first - piece.begin : piece.last - piece.begin]
        yield from results.items()

    def _blocks_of(
        self, x: Tensor, lengths: list[int], layers: Sequence[str], reach: int | None
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, [ΣT, C]) of the blocks that were asked for and of what ends them; none above the highest runs."""
        h: Tensor | None = None
        name = "embed"
        for number, block in enumerate(self._blocks[: highest_block(layers, len(self._blocks))], 1):
            x, h = block(x, lengths, reach=reach, entering=h, spend=name not in layers)
            name = f"layer_{number:02d}"
            if name in layers:
                yield name, x
        if "final" in layers:
            # Whoever writes into one of two layers must not find that in the other.
            same = x.clone() if name in layers and not self._squeezes else x
            yield "final", layer_norm(x, self._model.encoder.layer_norm) if self._norm_first else same

    def _embed(self, waveforms: Iterable[Tensor]) -> tuple[list[Tensor], list[int]]:
        """The frames of all recordings in order, [T, C] each or [ΣT, C] in one tensor, and how many each has."""
        if self._together is not None:
            waveforms = list(waveforms)
            lengths = [self._frontend.count_frames(len(waveform)) for waveform in waveforms]
            return [self._frontend.project(self._together(waveforms), sum(lengths))], lengths
        embedded = [self._frontend(waveform) for waveform in waveforms]
        return embedded, [len(frames) for frames in embedded]

    def _enter(self, embedded: list[Tensor], lengths: list[int]) -> Tensor:
        """What enters the blocks, [ΣT, C], from the frames of all recordings; empties the list."""
        x = self._with_positions(embedded, lengths)
        return x if self._norm_first else layer_norm(x, self._model.encoder.layer_norm)

    def _with_positions(self, embedded: list[Tensor], lengths: list[int]) -> Tensor:
        frames = embedded[0] if len(embedded) == 1 else torch.cat(embedded)
        embedded.clear()
        if not self._squeezes:
            return self._positions(frames, lengths).add_(frames)
        parts = []
        for part in frames.split(lengths):
            channels_first = part.to(self._model.dtype).T[None]
            places = self._model.encoder.pos_conv_embed(channels_first)
            pooled = self._model.encoder.pool(channels_first)
            count = min(places.shape[-1], pooled.shape[-1])
            parts.append((pooled[..., :count].to(self._wide) + places[..., :count])[0].T)
        return torch.cat(parts)

    def _leave(self, frames: Tensor, length: int) -> Tensor:
        """What the model does after its blocks with a recording that had `length` frames before them."""
        if self._squeezes:
            frames = self._model.encoder.upsample(frames[None])[0]
            frames = F.pad(frames, (0, 0, 0, max(length - len(frames), 0)))
        adapter = getattr(self._model, "adapter", None)
        return frames if adapter is None else adapter(frames[None])[0]
