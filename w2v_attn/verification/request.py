"""What `verify` compares: the request, the recordings, and their inputs by the checkpoint's own preprocessor."""

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

DTYPES = ("float64", "float32", "bfloat16")
# Relative cost of a dtype and of the steps in it: a forward is 1, a forward with its backward 3.
DTYPE_COST = {"float64": 2.0, "float32": 1.0, "bfloat16": 1.0}
STOCK, ALONE, PADDED, EXTRACT = 8.0, 3.0, 4.0, 3.0


@dataclass(frozen=True, kw_only=True)
class VerificationRequest:
    """What to compare. `checkpoint`, `revision`, `language`, `base_model`, `device`, `backend`: as for `load_encoder`.

    Args:
        rows: Recordings to choose from.
        count: Number of recordings.
        seconds: Length of the beginning that is taken of each.
        dtypes: Some of DTYPES.

    Raises:
        ValueError: an unknown dtype, or none.
    """

    checkpoint: str
    revision: str | None
    language: str | None
    rows: Sequence[Row]
    count: int
    seconds: float
    dtypes: Sequence[str]
    device: torch.device
    backend: str
    base_model: str | None = None

    def __post_init__(self) -> None:
        unknown = [dtype for dtype in self.dtypes if dtype not in DTYPES]
        if unknown or not self.dtypes:
            raise ValueError(f"dtypes must be some of {', '.join(DTYPES)}, got {', '.join(unknown) or 'none'}")

    @property
    def cost(self) -> float:
        """The cost of all steps, to which the costs that `verify` reports add up."""
        ours = sum(DTYPE_COST[dtype] for dtype in set(self.dtypes)) * (ALONE + PADDED + EXTRACT)
        return ours + sum(DTYPE_COST[dtype] for dtype in {*self.dtypes, "float64"}) * STOCK


@dataclass(frozen=True)
class Sample:
    """The beginning of a recording.

    Attributes:
        waveform: float32 [samples] at the model's sample rate, as recorded.
    """

    id: str
    waveform: Tensor


def select_samples(rows: Sequence[Row], model: WaveformModel, *, count: int, seconds: float) -> list[Sample]:
    """Return at most `count` recordings, evenly from the list, of each the first `seconds`.

    Recordings that cannot be used are logged.

    Raises:
        ValueError: none of them can be used; the message has the reason for the first one.
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
            logger.warning("skipped: %s", reasons[-1])
        else:
            found.append(Sample(row.id, waveform))
    if not found:
        raise ValueError(f"no recording can be used: {reasons[0]}")
    return found


def preprocessed_inputs(checkpoint: Checkpoint, samples: Sequence[Sample]) -> list[Tensor] | None:
    """Return the output of the checkpoint's preprocessor for each recording, without padding; None if it has none."""
    from transformers import AutoFeatureExtractor

    if not has_preprocessor(checkpoint.folder):
        return None
    extractor = AutoFeatureExtractor.from_pretrained(str(checkpoint.folder))
    name = checkpoint.model.main_input_name
    options = {"sampling_rate": checkpoint.sample_rate, "return_attention_mask": True, "return_tensors": "pt"}
    batches = [extractor(sample.waveform.numpy(), **options) for sample in samples]
    # Filter banks: a last window without a neighbour is padded and masked.
    found = []
    for one in batches:
        has_channel = "padding_mask" in one  # OmniASR's values are [B, 1, samples]
        values, mask = (one[name][0, 0], one["padding_mask"]) if has_channel else (one[name][0], one["attention_mask"])
        found.append(torch.as_tensor(values[mask[0].bool()]))
    return found
