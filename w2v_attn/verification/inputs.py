"""Recordings to compare on, and what stock makes of them before its model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.processor_files import has_preprocessor
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.waveforms import WaveformModel
from w2v_attn.runs.row_reader import read_row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """The beginning of a recording. waveform: float32 [samples] at the model's rate, as recorded."""

    id: str
    waveform: Tensor


def choose(rows: Sequence[Row], model: WaveformModel, *, count: int, seconds: float) -> list[Sample]:
    """At most `count` recordings, evenly from the list; of each the first `seconds`. What cannot be used is logged.

    Raises:
        ValueError: none of them can be used; the reason of the first one is told.
    """
    evenly = [rows[number * len(rows) // count] for number in range(count)] if count < len(rows) else []
    found: list[Sample] = []
    reasons: list[str] = []
    for row in dict.fromkeys([*evenly, *rows]):
        if len(found) == count:
            break
        try:
            waveform = read_row(row, sample_rate=model.sample_rate).waveform[: round(seconds * model.sample_rate)]
            model.check_waveform(waveform)
        except ValueError as error:
            reasons.append(f"{row.id} {error}")
            logger.warning("left out: %s", reasons[-1])
        else:
            found.append(Sample(row.id, waveform))
    if not found:
        raise ValueError(f"no recording can be used: {reasons[0]}")
    return found


def stock_inputs(checkpoint: Checkpoint, samples: Sequence[Sample]) -> list[Tensor] | None:
    """What the checkpoint's own preprocessor makes of each recording, without padding; None where there is none."""
    from transformers import AutoFeatureExtractor

    if not has_preprocessor(checkpoint.folder):
        return None
    extractor = AutoFeatureExtractor.from_pretrained(str(checkpoint.folder))
    name = checkpoint.model.main_input_name
    options = {"sampling_rate": checkpoint.sample_rate, "return_attention_mask": True, "return_tensors": "pt"}
    made = [extractor(sample.waveform.numpy(), **options) for sample in samples]
    # A last window of filter banks without a neighbour is padded and masked.
    return [torch.as_tensor(one[name][0][one["attention_mask"][0].bool()]) for one in made]
