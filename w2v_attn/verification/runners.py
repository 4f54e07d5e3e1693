"""The two sides: one model computed by stock's code, then by ours, on each recording alone and on all in one batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log2
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.patching.replace import replace_attention, restore_attention
from w2v_attn.patching.unpad import UnpaddedEncoder
from w2v_attn.verification import stages

Shapes = dict[str, list[torch.Size]]


@dataclass
class Climb:
    """What one way of computing leaves.

    stages: name -> a tensor for each recording, without its padding; in the order of computation.
    gradients: parameter -> its gradient, summed over the recordings; none where the loss does not depend on it.
    order: parameters in the order in which the backward reached them.
    """

    stages: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> Shapes:
        """Those of the stages."""
        return {name: [tensor.shape for tensor in tensors] for name, tensors in self.stages.items()}


def become_stock(model: nn.Module) -> None:
    """Makes all of a model stock transformers' again, in place."""
    restore_attention(model)
    assert not _ours(model), f"{_ours(model)} would be compared with itself"


def become_ours(model: nn.Module, backend: str, *, unpad: bool = False) -> None:
    """Puts our attention in a model, in place."""
    replace_attention(model, backend=backend, unpad=unpad)
    assert _ours(model), "stock would be compared with itself"


def padding_is_alone(model: Any, backend: str) -> bool:
    """Whether a padded batch of ours should be what each recording is alone; a stock model stays one.

    It should where our encoder leaves the padding out, unless a group norm before it, which stays stock's, has seen it.
    """
    become_ours(model, backend, unpad=True)
    unpadded = isinstance(model.base_model.encoder, UnpaddedEncoder)
    become_stock(model)
    return unpadded and not has_group_norm(model)


def has_group_norm(model: Any) -> bool:
    """Whether convolutions normalise over all the time they are given."""
    return any(
        isinstance(module, nn.GroupNorm)
        for stage, found in stages.stage_modules(model).items()
        if stage.startswith("conv_")
        for module in found.modules()
    )


def climb_alone(model: Any, inputs: Sequence[Tensor]) -> Climb:
    """Forward and backward of each recording alone. inputs: [samples] or [frames, bins] each, as the model takes them.

    The loss of a recording is the product of what the model gives with random numbers of about unit norm, the same for
    every way of computing.
    """
    climb = Climb()
    with _gradients(model, climb):
        for number, one in enumerate(inputs):
            output, found = _forward(model, one[None], None)
            for name, tensor in found.items():
                climb.stages.setdefault(name, []).append(tensor[0].cpu())
            (output[0] * _direction(output[0], number)).sum().backward()
    return climb


def climb_together(model: Any, inputs: Sequence[Tensor], shapes: Shapes) -> Climb:
    """Forward and backward of all recordings in one padded batch. shapes: those of the stages of each alone."""
    climb = Climb()
    with _gradients(model, climb):
        output, found = _forward(model, *padded(inputs))
        climb.stages = _without_padding(found, shapes)
        parts = _cut(output, shapes["logits" if "logits" in shapes else "final"])
        torch.stack([(part * _direction(part, number)).sum() for number, part in enumerate(parts)]).sum().backward()
    return climb


@torch.no_grad()
def stages_together(model: Any, inputs: Sequence[Tensor], shapes: Shapes) -> dict[str, list[Tensor]]:
    """The stages of all recordings in one padded batch, without their padding."""
    _, found = _forward(model, *padded(inputs))
    return _without_padding(found, shapes)


@torch.no_grad()
def attention_weights(model: Any, inputs: Sequence[Tensor], sizes: Sequence[int]) -> dict[str, list[Tensor]]:
    """Of each block the attention weights [H, T, T], for each recording alone and then for each in a padded batch.

    sizes: T of each recording. Stock gives weights in its eager implementation only; both sides take that one.
    """
    found: dict[str, list[Tensor]] = {}
    runs: list[tuple[Tensor, Tensor | None, Sequence[int]]]
    runs = [(one[None], None, [T]) for one, T in zip(inputs, sizes, strict=True)]
    runs.append((*padded(inputs), sizes))
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for batch, real, lengths in runs:
            blocks = model.base_model(batch, attention_mask=real, output_attentions=True).attentions
            for number, weights in enumerate(blocks, 1):
                parts = [weights[row, :, :T, :T].cpu() for row, T in enumerate(lengths)]
                found.setdefault(f"layer_{number:02d}", []).extend(parts)
    finally:
        model.set_attn_implementation(before)
    return found


def padded(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs of different lengths as one batch [B, N] or [B, N, bins] with zeros, and its mask, int64 [B, N]."""
    values = nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
    lengths = torch.tensor([len(one) for one in inputs], device=values.device)
    return values, (torch.arange(values.shape[1], device=values.device) < lengths[:, None]).long()


def _forward(model: Any, values: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """(logits, or hidden states where there is no head; all stages, detached)."""
    with stages.recorded(model) as found:
        answer = model(values, attention_mask=mask)
    logits = getattr(answer, "logits", None)
    if logits is None:
        return answer.last_hidden_state, found
    return logits, {**found, "logits": logits.detach()}


def _without_padding(found: dict[str, Tensor], shapes: Shapes) -> dict[str, list[Tensor]]:
    return {
        name: [part.cpu() for part in _cut(tensor, shapes[name])] for name, tensor in found.items() if name in shapes
    }


def _cut(tensor: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """A stage of a batch as one tensor for each recording, at most of these shapes: [B, …], or frames side by side."""
    if len(tensor) == 1 < len(shapes):
        return list(tensor[0].split([shape[0] for shape in shapes]))
    parts = []
    for part, shape in zip(tensor, shapes, strict=True):
        for dim, size in enumerate(shape):
            part = part.narrow(dim, 0, min(size, part.shape[dim]))
        parts.append(part)
    return parts


def _direction(like: Tensor, number: int) -> Tensor:
    """Random numbers of the shape of what a recording gives, of L2 norm about 1; the same in every dtype."""
    generator = torch.Generator().manual_seed(number)
    drawn = torch.randn(like.shape, generator=generator).bfloat16()
    return (drawn * 2.0 ** -round(log2(like.numel()) / 2)).to(like)


@contextmanager
def _gradients(model: nn.Module, climb: Climb) -> Iterator[None]:
    """While open, gradients are collected; then they are the climb's, and the model has none."""
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
    climb.order = list(reached)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            climb.gradients[name] = parameter.grad.cpu()
        parameter.grad = None


def _ours(model: nn.Module) -> set[str]:
    """Names of the classes in a model that have code of this package, but for heads that stock transformers has not."""

    def homes(cls: type) -> set[str]:
        return {base.__module__ for base in cls.__mro__} - {"w2v_attn.checkpoints.pooled_classifiers"}

    classes = {type(module) for module in model.modules()}
    return {cls.__name__ for cls in classes if any(home.startswith("w2v_attn.") for home in homes(cls))}
