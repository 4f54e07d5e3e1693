"""SpecAugment as wav2vec 2.0 has it: spans of frames become a learned vector, spans of channels zero.

Source: D. S. Park et al., "SpecAugment", and wav2vec 2.0, section 4.3 and appendix B; where stock transformers draws
with numpy and refuses recordings shorter than a span, this draws where the model is, and clamps spans to the recording.
"""

from typing import Any

import torch
from torch import Tensor, nn


def install(model: nn.Module) -> None:
    """Puts the masking below in the place of the one that each base model inside `model` has, on this instance."""
    for module in model.modules():
        if hasattr(module, "_mask_hidden_states") and hasattr(module, "masked_spec_embed"):
            module._mask_hidden_states = _Masking(module)  # type: ignore[assignment]


def uninstall(model: nn.Module) -> None:
    """Stock's masking again."""
    for module in model.modules():
        if isinstance(vars(module).get("_mask_hidden_states"), _Masking):
            del module._mask_hidden_states


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
            mask_time_indices = draw_spans(lengths, T, config.mask_time_prob, config.mask_time_length)
        if mask_time_indices is not None:
            masked = base.masked_spec_embed.to(hidden_states.dtype)
            hidden_states = torch.where(mask_time_indices[..., None], masked, hidden_states)
        if base.training and config.mask_feature_prob > 0:
            widths = torch.full((B,), C, device=device)
            channels = draw_spans(widths, C, config.mask_feature_prob, config.mask_feature_length)
            hidden_states = hidden_states.masked_fill(channels[:, None], 0)
        return hidden_states


def draw_spans(lengths: Tensor, size: int, probability: float, span: int) -> Tensor:
    """Bool [B, size]: spans that start anywhere they fit, about `probability` · length / span of them; they overlap.

    lengths: int [B], of each row. span: places; at most as many as there are, and no more than leaves half the row.

    The number of spans is rounded up or down at random, so that short rows are masked as much as long ones on average.
    Nothing here waits for the device.
    """
    B, device = len(lengths), lengths.device
    spans = torch.clamp(lengths // 2, min=1, max=span)
    count = torch.floor(probability * lengths / spans + torch.rand(B, device=device))
    # Rows of twice the span or more have length / span spans at most; in shorter ones length / (length // 2) is 3.
    most = int(probability * max(size / span, 3.0)) + 2
    starts = (torch.rand(B, most, device=device) * (lengths - spans + 1)[:, None]).long()
    counted = (torch.arange(most, device=device) < count[:, None]).int()
    # +1 where a span begins and -1 behind its end; inside spans their running sum is above 0.
    steps = torch.zeros(B, size + 1, dtype=torch.int32, device=device)
    steps.scatter_add_(1, starts, counted).scatter_add_(1, starts + spans[:, None], -counted)
    return steps.cumsum(1)[:, :size] > 0
