"""SpecAugment and LayerDrop for training, in place of those of transformers.

SpecAugment: spans of frames become a learned vector, spans of channels zero. `_compute_mask_indices` of transformers
draws with NumPy and refuses batches shorter than a span; here spans are drawn on the model's device, and are clamped to
the recording. LayerDrop: transformers leaves the parameters of a dropped block without gradients, and
DistributedDataParallel then stops with "parameters that were not used"; here they get gradients of zero if needed.

Source: D. S. Park et al., "SpecAugment"; wav2vec 2.0, section 4.3 and appendix B; A. Fan et al., "Reducing Transformer
Depth on Demand with Structured Dropout"; transformers #11452.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.checkpoints.encoder_parts import EncoderParts, encoder_config, encoder_parts, is_encoder


def patch_spec_augment(model: nn.Module) -> None:
    """Patch the masking of each base model inside `model`, in place."""
    for module in model.modules():
        if hasattr(module, "_mask_hidden_states") and hasattr(module, "masked_spec_embed"):
            module._mask_hidden_states = _Masking(module)  # type: ignore[assignment]


def restore_spec_augment(model: nn.Module) -> None:
    """Undo `patch_spec_augment`."""
    for module in model.modules():
        if isinstance(vars(module).get("_mask_hidden_states"), _Masking):
            del module._mask_hidden_states


def masks_frames(config: Any) -> bool:
    """Return whether training with this config masks frames."""
    # Data2VecAudio's config lacks the first, OmniASR has no SpecAugment.
    return getattr(config, "apply_spec_augment", True) and getattr(config, "mask_time_prob", 0) > 0


class _Masking:
    """A replacement of `Wav2Vec2Model._mask_hidden_states`."""

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
            least = getattr(config, "mask_feature_min_masks", 0)  # missing in WavLM's config
            channels = draw_spans(widths, C, config.mask_feature_prob, config.mask_feature_length, least)
            hidden_states = hidden_states.masked_fill(channels[:, None], 0)
        return hidden_states


def draw_spans(lengths: Tensor, size: int, probability: float, span: int, min_spans: int) -> Tensor:
    """Draw masks, bool [B, size], of spans that start at different positions; spans may overlap.

    A row has about `probability` · length / span of them and at least `min_spans`, but no more than fit without
    overlap. The number is rounded up or down at random, so that short rows are masked as much as long ones on average.
    No row is masked completely. Nothing here synchronizes with the device.

    Args:
        lengths: int [B], the length of each row.
        size: The length of the masks.
        probability: The share of positions to mask.
        span: The length of a span; it is shortened to half of a short row.
        min_spans: The minimum number of spans of a row.
    """
    B, device = len(lengths), lengths.device
    spans = torch.clamp(lengths // 2, min=1, max=span)
    count = torch.floor(probability * lengths / spans + torch.rand(B, device=device))
    count = torch.minimum(count.clamp(min=min_spans), lengths // spans)
    # Rows of at least twice the span have at most length / span spans; shorter ones length / (length // 2) <= 3.
    max_spans = min(size, max(min_spans, int(probability * max(size / span, 3.0)) + 2))
    places = torch.arange(size, device=device)
    # The positions with the greatest random numbers are a draw without replacement. If a row has fewer valid starts
    # than `max_spans`, invalid ones come last, and `count` excludes them.
    last = (lengths - spans)[:, None]
    numbers = torch.rand(B, size, device=device).masked_fill(places > last, -1)
    starts = torch.minimum(numbers.topk(max_spans).indices, last.clamp(min=0))
    counted = (torch.arange(max_spans, device=device) < count[:, None]).int()
    # +1 at the start of a span and -1 after its end; the cumulative sum is positive inside spans.
    steps = torch.zeros(B, size + 1, dtype=torch.int32, device=device)
    steps.scatter_add_(1, starts, counted).scatter_add_(1, starts + spans[:, None], -counted)
    mask = steps.cumsum(1)[:, :size] > 0
    # Spans that fill a row are adjacent: the first one is removed.
    full = mask.sum(1) == lengths
    return mask & ~(full[:, None] & (places < spans[:, None]))


def patch_layerdrop(model: nn.Module, *, keep_gradients: bool) -> None:
    """Patch the layerdrop in the encoder of `model`, in place; the model's config keeps its value.

    keep_gradients: whether dropped blocks get gradients of zero (needed by several processes) instead of none.
    """
    parts = _parts(model)
    encoder = parts.encoder
    probability = float(encoder.config.layerdrop)
    if probability == 0:
        return
    encoder.config = copy.copy(encoder.config)
    encoder.config.layerdrop = 0.0
    if hasattr(encoder, "layerdrop"):  # OmniASR's copy of the value
        encoder.layerdrop = 0.0
    for block in parts.blocks:
        block.forward = partial(_forward, block, block.forward, probability, keep_gradients)


def restore_layerdrop(model: nn.Module) -> None:
    """Undo `patch_layerdrop`."""
    parts = _parts(model)
    parts.encoder.config = encoder_config(model.config)
    if hasattr(parts.encoder, "layerdrop"):
        parts.encoder.layerdrop = parts.encoder.config.layerdrop
    for block in parts.blocks:
        vars(block).pop("forward", None)


def _parts(model: nn.Module) -> EncoderParts:
    """Return the parts of the encoder in `model`, also inside wrappers."""
    return encoder_parts(next(module for module in model.modules() if is_encoder(module)))


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
