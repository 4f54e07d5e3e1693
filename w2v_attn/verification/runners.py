"""Runs of a model, with stock's code or with ours, on each recording alone and on all in one batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log2
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.checkpoints.encoder_parts import base_encoder, encoder_parts, model_inputs
from w2v_attn.patching.replace import replace_attention, restore_attention
from w2v_attn.patching.unpad import UnpaddedEncoder
from w2v_attn.verification import stages

Shapes = dict[str, list[torch.Size]]


@dataclass
class Trace:
    """The intermediate results of a run.

    Attributes:
        stages: Name -> a tensor for each recording, without padding; in the order of computation.
        gradients: Parameter -> its gradient, summed over the recordings; missing if the loss does not depend on it.
        order: Parameters in the order in which the backward reached them.
    """

    stages: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> Shapes:
        """The shapes of the stages."""
        return {name: [tensor.shape for tensor in tensors] for name, tensors in self.stages.items()}


def restore_model(model: nn.Module) -> None:
    """Restore all stock modules of transformers in a model, in place."""
    restore_attention(model)
    assert not _patched_classes(model), f"{_patched_classes(model)} would be compared with itself"


def patch_model(model: nn.Module, backend: str, *, unpad: bool = False) -> None:
    """Replace the attention of a model by ours, in place."""
    replace_attention(model, backend=backend, unpad=unpad)
    assert _patched_classes(model), "stock would be compared with itself"


def ignores_padding(model: Any, backend: str) -> bool:
    """Return whether our results for a padded batch should equal those of each recording alone.

    They should if our encoder removes the padding, unless a stock group norm before it includes the padding. The model
    is stock before and after the call.
    """
    patch_model(model, backend, unpad=True)
    unpadded = isinstance(encoder_parts(base_encoder(model)).encoder, UnpaddedEncoder)
    restore_model(model)
    return unpadded and not has_group_norm(model)


def has_group_norm(model: Any) -> bool:
    """Return whether the convolutions normalise over time, padding included."""
    return any(
        isinstance(module, nn.GroupNorm)
        for stage, found in stages.stage_modules(model).items()
        if stage.startswith("conv_")
        for module in found.modules()
    )


def run_each(model: Any, inputs: Sequence[Tensor]) -> Trace:
    """Run forward and backward on each recording alone.

    The loss of a recording is the dot product of the output with random numbers of about unit norm, the same in every
    run.

    Args:
        model: The model.
        inputs: Model inputs, [samples] or [frames, bins] each.
    """
    trace = Trace()
    with _gradients(model, trace):
        for number, one in enumerate(inputs):
            output, found = _forward(model, one[None], None)
            for name, tensor in found.items():
                trace.stages.setdefault(name, []).append(tensor[0].cpu())
            (output[0] * _direction(output[0], number)).sum().backward()
    return trace


def run_batched(model: Any, inputs: Sequence[Tensor], shapes: Shapes) -> Trace:
    """Run forward and backward on all recordings in one padded batch. shapes: of the stages of each recording alone."""
    trace = Trace()
    with _gradients(model, trace):
        output, found = _forward(model, *pad_inputs(inputs))
        trace.stages = _without_padding(found, shapes)
        parts = _cut(output, shapes["logits" if "logits" in shapes else "final"])
        torch.stack([(part * _direction(part, number)).sum() for number, part in enumerate(parts)]).sum().backward()
    return trace


@torch.no_grad()
def batched_stages(model: Any, inputs: Sequence[Tensor], shapes: Shapes) -> dict[str, list[Tensor]]:
    """Return the stages of all recordings in one padded batch, without padding."""
    _, found = _forward(model, *pad_inputs(inputs))
    return _without_padding(found, shapes)


@torch.no_grad()
def attention_weights(model: Any, inputs: Sequence[Tensor], sizes: Sequence[int]) -> dict[str, list[Tensor]]:
    """Return the attention weights of each block, [H, T, T], for each recording alone and then in a padded batch.

    Stock returns weights in its eager implementation only, so both runs use it. sizes: T of each recording.
    """
    found: dict[str, list[Tensor]] = {}
    runs: list[tuple[Tensor, Tensor | None, Sequence[int]]]
    runs = [(one[None], None, [T]) for one, T in zip(inputs, sizes, strict=True)]
    runs.append((*pad_inputs(inputs), sizes))
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for batch, real, lengths in runs:
            base = base_encoder(model)
            blocks = base(**model_inputs(base, batch, real), output_attentions=True).attentions
            for number, weights in enumerate(blocks, 1):
                parts = [weights[row, :, :T, :T].cpu() for row, T in enumerate(lengths)]
                found.setdefault(f"layer_{number:02d}", []).extend(parts)
    finally:
        model.set_attn_implementation(before)
    return found


def pad_inputs(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return a ragged batch padded with zeros, [B, N] or [B, N, bins], and its mask, int64 [B, N]."""
    values = nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
    lengths = torch.tensor([len(one) for one in inputs], device=values.device)
    return values, (torch.arange(values.shape[1], device=values.device) < lengths[:, None]).long()


def _forward(model: Any, values: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits, or the hidden states if there is no head, and all stages, detached."""
    with stages.record_stages(model) as found:
        answer = model(**model_inputs(model, values, mask))
    logits = getattr(answer, "logits", None)
    if logits is None:
        return answer.last_hidden_state, found
    return logits, {**found, "logits": logits.detach()}


def _without_padding(found: dict[str, Tensor], shapes: Shapes) -> dict[str, list[Tensor]]:
    return {
        name: [part.cpu() for part in _cut(tensor, shapes[name])] for name, tensor in found.items() if name in shapes
    }


def _cut(tensor: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return a stage of a batch, [B, …] or packed, as one tensor for each recording, cut to these shapes."""
    if len(tensor) == 1 < len(shapes):
        return list(tensor[0].split([shape[0] for shape in shapes]))
    parts = []
    for part, shape in zip(tensor, shapes, strict=True):
        for dim, size in enumerate(shape):
            part = part.narrow(dim, 0, min(size, part.shape[dim]))
        parts.append(part)
    return parts


def _direction(like: Tensor, number: int) -> Tensor:
    """Return random numbers in the shape of an output, with an L2 norm of about 1; the same in every dtype."""
    generator = torch.Generator().manual_seed(number)
    drawn = torch.randn(like.shape, generator=generator).bfloat16()
    return (drawn * 2.0 ** -round(log2(like.numel()) / 2)).to(like)


@contextmanager
def _gradients(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Collect gradients; at the end they move from the model to the trace."""
    reached: dict[str, None] = {}  # a dictionary for its order
    hooks = []
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        hooks.append(parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.setdefault(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    trace.order = list(reached)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            trace.gradients[name] = parameter.grad.cpu()
        parameter.grad = None


def _patched_classes(model: nn.Module) -> set[str]:
    """Return the names of a model's classes with code of this package, except heads that transformers does not have."""

    def origins(cls: type) -> set[str]:
        return {base.__module__ for base in cls.__mro__} - {"w2v_attn.checkpoints.pooled_classifiers"}

    classes = {type(module) for module in model.modules()}
    return {cls.__name__ for cls in classes if any(origin.startswith("w2v_attn.") for origin in origins(cls))}
