"""A batch of recordings -> the features of each, on the CPU; or why they cannot be used."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.audio.reading import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.runs.processing import Batch

logger = logging.getLogger(__name__)

# Seconds of audio, and of waiting, from which it is said how long a recording will take.
LONG, PATIENCE = 300.0, 120.0


def compute(encoder: Encoder, wanted: tuple[str, ...], batch: Batch) -> list[dict[str, Tensor] | ValueError]:
    """Features of each recording of a batch; a ValueError in the place of those that are not finite."""
    for row, recording in batch:
        _announce(encoder, row, recording, wanted)
    found = encoder.extract([recording.waveform for _, recording in batch], wanted)
    # Off the GPU at once, for its memory is the next batch's. Copies on a CPU too: `final` can be the very tensor
    # that the last layer is.
    on_cpu = ({name: tensor.to("cpu", copy=True) for name, tensor in features.items()} for features in found)
    return [_checked_finite(features) for features in on_cpu]


def _announce(encoder: Encoder, row: Row, recording: Recording, layers: Sequence[str]) -> None:
    """Says before it begins what a long recording will take."""
    if recording.duration < LONG:
        return
    seconds = encoder.expected_seconds(len(recording.waveform), layers)
    if seconds > PATIENCE:
        logger.warning(
            "%s: %.0f minutes of audio will take about %.0f minutes%s", row.id, recording.duration / 60, seconds / 60,
            "; long=window takes less, and is not exact" if encoder.long.kind == "exact" else "",
        )  # fmt: skip


def _checked_finite(features: dict[str, Tensor]) -> dict[str, Tensor] | ValueError:
    if all(bool(torch.isfinite(tensor).all()) for tensor in features.values()):
        return features
    dtype = str(next(iter(features.values())).dtype).removeprefix("torch.")
    way_out = "" if dtype in ("float32", "float64") else ": extract with dtype=float32"
    return ValueError(f"its features are not finite in {dtype}{way_out}")
