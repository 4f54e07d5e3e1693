"""The interface of recognisers: a fine-tuned model with its head, waveforms in, texts or labels out."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from w2v_attn.encoder.waveforms import WaveformModel, evaluation_mode
from w2v_attn.transcription.outputs import Label, Transcript


class Recognizer(WaveformModel, ABC):
    """A fine-tuned model with its head: waveforms in, transcripts or labels out."""

    def recognize(self, waveform: Tensor) -> Transcript | Label:
        """Return the transcript or the label of a recording.

        Args:
            waveform: float32 [samples] at `sample_rate`, not normalised.

        Raises:
            ValueError: the waveform is too short.
        """
        return self.decode(self.log_probabilities(waveform))

    @abstractmethod
    def decode(self, log_probabilities: Tensor) -> Transcript | Label:
        """Return the transcript or the label for the model's output, float32 [frames, symbols] or [labels]."""

    @torch.no_grad()
    def log_probabilities(self, waveform: Tensor) -> Tensor:
        """Return float32 [frames, symbols] or [labels] of one recording, computed without any other in the batch."""
        self.check_waveform(waveform)
        with evaluation_mode(self.model):
            return self.model(self.prepare(waveform)[None].to(self.dtype)).logits[0].float().log_softmax(-1).cpu()
