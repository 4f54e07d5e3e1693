"""The interface of recognisers: a fine-tuned model with its head, waveforms in, texts, labels or values out."""

import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.checksum import checkpoint_hash
from w2v_attn.checkpoints.encoder_parts import base_encoder, model_inputs
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.dtypes import dtype_name
from w2v_attn.encoder import ragged
from w2v_attn.encoder.cost import ENCODER_EFFICIENCY, LONG_RECORDING, LONG_WAIT, operations, product_rate
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.encoder.waveforms import WaveformModel, evaluation_mode
from w2v_attn.transcription.head import run_on_frames
from w2v_attn.transcription.outputs import Recognition

logger = logging.getLogger(__name__)

# Up to this length the model itself runs, whose convolutions take about 1 GB a minute. A longer recording goes through
# the packed encoder, whose convolutions take the same memory for any length; it agrees up to rounding.
MAX_MODEL_SECONDS = 600.0


class Recognizer(WaveformModel, ABC):
    """A fine-tuned model with its head: waveforms in, transcripts, labels, values, spans or embeddings out.

    Attributes:
        has_times: Whether it gives words or labels, which files such as subtitles can hold.

    Args:
        checkpoint: The loaded model.
        device: Device of the model.
        backend: See `load_encoder`.
        long_form: How long recordings are processed. Default: with full attention.

    Raises:
        ValueError: a `long_form` that this checkpoint does not support.
    """

    has_times: bool = True

    def __init__(
        self, checkpoint: Checkpoint, *, device: torch.device, backend: str = "auto", long_form: LongForm | None = None
    ):
        super().__init__(checkpoint, device=device, backend=backend)
        self.long_form = LongForm() if long_form is None else long_form
        self._backend, self._encoder = backend, None
        if self.long_form.kind != "full":
            self._packed_encoder()

    def announce(self, name: str, waveform: Tensor) -> None:
        """Log the expected time of a long recording before it is computed. name: of the recording."""
        duration = len(waveform) / self.sample_rate
        if duration < LONG_RECORDING:
            return
        attended = None if self.long_form.kind == "full" else round(self.long_form.seconds * self.frame_rate("embed"))
        rate = ENCODER_EFFICIENCY * product_rate(self.dtype, self.device)
        seconds = operations(self.config, duration, attended=attended) / rate
        if seconds > LONG_WAIT:
            logger.warning(
                "%s: %.0f minutes of audio will take about %.0f minutes%s", name, duration / 60, seconds / 60,
                "" if attended else "; long_form=sliding_window takes less, and is not exact",
            )  # fmt: skip

    def fingerprint(self) -> dict[str, str]:
        """Return what determines the output, except for its last bits."""
        return {
            "checkpoint": checkpoint_hash(self.checkpoint),
            "language": str(self.checkpoint.language),
            "dtype": dtype_name(self.dtype),
            "long_form": self.long_form.describe(),
            **self.describe_decoding(),
        }

    @abstractmethod
    def describe_decoding(self) -> dict[str, str]:
        """Return what determines `decode` beside the weights and the config."""

    def recognize(self, recording: Any, *, sampling_rate: int | None = None) -> Any:
        """Return the transcript, the label, … of a recording.

        Args:
            recording: Samples [samples] or [channels, samples] as recorded, a path, or whatever else
                `encoder.recordings.to_waveform` takes.
            sampling_rate: Sample rate of samples that do not state theirs, in Hz. Default: `sample_rate`.

        Raises:
            ValueError: the recording is something else, cannot be read, is too short, or contains NaN.
        """
        return self.decode(self.outputs(self.to_waveform(recording, sampling_rate)))

    @abstractmethod
    def decode(self, outputs: Tensor, /) -> Recognition:
        """Return the transcript, the label, … for what `outputs` returns."""

    def outputs(self, waveform: Tensor) -> Tensor:
        """Return what is decoded, float32 [frames, outputs] or [outputs]; log-probabilities unless overridden."""
        return self.log_probabilities(waveform)

    def log_probabilities(self, waveform: Tensor) -> Tensor:
        """Return float32 [frames, symbols] or [labels] of one recording."""
        return self.logits(waveform).log_softmax(-1)

    def logits(self, waveform: Tensor) -> Tensor:
        """Return what the head computes for one recording, float32 [frames, outputs] or [outputs]."""
        return self._run(waveform).logits[0].float().cpu()

    @torch.no_grad()
    def _run(self, waveform: Tensor) -> Any:
        """Return the outputs of the model for one recording, computed without any other in the batch."""
        self.check_waveform(waveform)
        with evaluation_mode(self.model):
            return self._forward(waveform)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, without the packed encoder: it is made again from the model."""
        return {**super().__getstate__(), "_encoder": None}

    def _forward(self, waveform: Tensor) -> Any:
        """Return the output of the model, or that of its head on the frames of the packed encoder."""
        seconds = len(waveform) / self.sample_rate
        if self.long_form.kind == "full" and (seconds <= MAX_MODEL_SECONDS or not self._can_pack()):
            return self.model(**model_inputs(self.model, self.prepare(waveform)[None].to(self.dtype)))
        return run_on_frames(self.model, self._packed_encoder(), waveform)

    def _can_pack(self) -> bool:
        return ragged.unsupported_reason(base_encoder(self.model)) is None

    def _packed_encoder(self) -> Encoder:
        """Return the encoder of the model. Raises ValueError if it does not support `long_form`."""
        base = base_encoder(self.model)
        if self._encoder is None or self._encoder.model is not base:
            checkpoint = replace(self.checkpoint, model=base)
            self._encoder = Encoder(checkpoint, device=self.device, backend=self._backend, long_form=self.long_form)
        return self._encoder
