"""torchaudio's wav2vec 2.0, with the weights that it takes over from Hugging Face."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.benchmarks.peers.peer import Subject, converting, library


class Torchaudio:
    """One by one."""

    name, batch, quadratic = "torchaudio", 1, False

    def prepare(self, subject: Subject) -> None:
        utils = library("torchaudio.models.wav2vec2.utils")
        self._device, self._dtype = subject.device, subject.dtype
        with converting("torchaudio's import of the model"):
            self._model = utils.import_huggingface_model(subject.reference).to(subject.device, subject.dtype).eval()

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return [self._model(wave[None].to(self._device, self._dtype))[0][0] for wave in waveforms]
