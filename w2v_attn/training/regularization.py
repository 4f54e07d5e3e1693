"""SpecAugment as wav2vec 2.0 has it: spans of frames become a learned vector, spans of channels zero.

Source: D. S. Park et al., "SpecAugment", and wav2vec 2.0, section 4.3 and appendix B; `_compute_mask_indices` of stock
transformers, which draws with numpy and refuses batches shorter than a span. Here spans are drawn where the model is,
and are clamped to the recording.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def patch_spec_augment(model: nn.Module) -> None:
    """Puts the masking below in the place of the one that each base model inside `model` has, on this instance."""
    for module in model.modules():
        if hasattr(module, "_mask_hidden_states") and hasattr(module, "masked_spec_embed"):
            module._mask_hidden_states = _Masking(module)  # type: ignore[assignment]


def restore_spec_augment(model: nn.Module) -> None:
    """Stock's masking again."""
    for module in model.modules():
        if isinstance(vars(module).get("_mask_hidden_states"), _Masking):
            del module._mask_hidden_states


def masks_frames(config: Any) -> bool:
    """Whether training with this config masks frames."""
    return getattr(config, "apply_spec_augment", True) and config.mask_time_prob > 0  # Data2VecAudio has no switch


class _Masking:
    """Has the signature of `Wav2Vec2Model._mask_hidden_states`."""

    def __init__(self, base: Any):
        self._base = base

    def __call__(
        self, hidden_states: Tensor, mask_time_indices: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        base, config = self._base, self._base.config
        if not getattr(config, "apply_spec_augment", True):
            return hidden_states
        B, T, C = hidden_states.shape
        device = hidden_states.device
        if mask_time_indices is None and base.training and config.mask_time_prob > 0:
            lengths = torch.full((B,), T, device=device) if attention_mask is None else attention_mask.sum(-1)
            mask_time_indices = draw_spans(
                lengths, T, config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks
            )
        if mask_time_indices is not None:
            masked = base.masked_spec_embed.to(hidden_states.dtype)
            hidden_states = torch.where(mask_time_indices[..., None], masked, hidden_states)
        if base.training and config.mask_feature_prob > 0:
            widths = torch.full((B,), C, device=device)
            least = getattr(config, "mask_feature_min_masks", 0)  # WavLM's config lacks it
            channels = draw_spans(widths, C, config.mask_feature_prob, config.mask_feature_length, least)
            hidden_states = hidden_states.masked_fill(channels[:, None], 0)
        return hidden_states


def draw_spans(lengths: Tensor, size: int, probability: float, span: int, min_spans: int) -> Tensor:
    """Bool [B, size]: spans that start at different places, anywhere they fit; they overlap.

    There are about `probability` · length / span of them and at least `min_spans`, but no more than fit beside each
    other. The number is rounded up or down at random, so that short rows are masked as much as long ones on average.
    Something is left of every row. Nothing here waits for the device.

    lengths: int [B], of each row. span: places; at most as many as there are, and no more than leaves half the row.
    """
    B, device = len(lengths), lengths.device
    spans = torch.clamp(lengths // 2, min=1, max=span)
    count = torch.floor(probability * lengths / spans + torch.rand(B, device=device))
    count = torch.minimum(count.clamp(min=min_spans), lengths // spans)
    # Rows of twice the span or more have length / span spans at most; in shorter ones length / (length // 2) is 3.
    most = min(size, max(min_spans, int(probability * max(size / span, 3.0)) + 2))
    places = torch.arange(size, device=device)
    # The places with the greatest numbers are a draw without replacement. Where a row has fewer places for a start
    # than `most`, others come last, and `count` leaves them out.
    last = (lengths - spans)[:, None]
    numbers = torch.rand(B, size, device=device).masked_fill(places > last, -1)
    starts = torch.minimum(numbers.topk(most).indices, last.clamp(min=0))
    counted = (torch.arange(most, device=device) < count[:, None]).int()
    # +1 where a span begins and -1 behind its end; inside spans their running sum is above 0.
    steps = torch.zeros(B, size + 1, dtype=torch.int32, device=device)
    steps.scatter_add_(1, starts, counted).scatter_add_(1, starts + spans[:, None], -counted)
    mask = steps.cumsum(1)[:, :size] > 0
    # Spans that fill a row lie end to end: the first of them gives way.
    full = mask.sum(1) == lengths
    return mask & ~(full[:, None] & (places < spans[:, None]))


def patch_layerdrop(model: nn.Module, *, keep_gradients: bool) -> None:
    """Takes the place of stock's layerdrop in the encoder of `model`; the model's config keeps its value.

    keep_gradients: dropped blocks get zeros as gradients (several processes need that), not none.
    """
    encoder = _encoder(model)
    probability = float(encoder.config.layerdrop)
    if probability == 0:
        return
    encoder.config = copy.copy(encoder.config)
    encoder.config.layerdrop = 0.0
    for block in encoder.layers:
        block.forward = partial(_forward, block, block.forward, probability, keep_gradients)


def restore_layerdrop(model: nn.Module) -> None:
    """Stock's layerdrop again."""
    encoder = _encoder(model)
    encoder.config = model.config
    for block in encoder.layers:
        vars(block).pop("forward", None)


def _encoder(model: nn.Module) -> Any:
    """The module that holds the blocks, also inside wrappers."""
    return next(
        module
        for name, module in model.named_modules()
        if name.split(".")[-1] == "encoder" and isinstance(getattr(module, "layers", None), nn.ModuleList)
    )


def _forward(
    block: nn.Module,
    forward: Callable[..., Any],
    probability: float,
    keep_gradients: bool,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not block.training or float(torch.rand([])) >= probability:
        return forward(hidden_states, *args, **kwargs)
    if keep_gradients and torch.is_grad_enabled():
        touched = [parameter.view(-1)[0] for parameter in block.parameters() if parameter.requires_grad]
        if touched:
            hidden_states = hidden_states + 0 * torch.stack(touched).sum()
    return hidden_states
