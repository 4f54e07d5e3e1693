"""Contenders in PyTorch: our encoder, stock Hugging Face with sdpa in several ways, and torchaudio."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.benchmarks.peers.contender import Subject, converting, library
from w2v_attn.checkpoints.encoder_parts import model_inputs
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.processor_files import WAV2VEC2_EPSILON
from w2v_attn.encoder.cost import SAMPLE_RATE
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.packed_waveforms import Grid


class Ours:
    """`Encoder.extract` on the whole list, with its own batching. layer: the highest one that is computed."""

    batch, quadratic = 1, False

    def __init__(self, layer: str = "final"):
        self.layer = layer
        self.name = "w2v_attn" if layer == "final" else f"w2v_attn, {layer}"

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
        # A copy, because its attention is replaced. Waveforms are normalised before, because peers do not normalise.
        checkpoint = Checkpoint(
            model=deepcopy(subject.model),
            source="random weights",
            folder=Path(),
            missing=(),
            unexpected=(),
            sample_rate=SAMPLE_RATE,
            do_normalize=False,
            normalize_epsilon=WAV2VEC2_EPSILON,
            normalize_source="the benchmark",
        )
        self._encoder = Encoder(checkpoint, device=subject.device)

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Contender`."""
        return [features[self.layer] for features in self._encoder.extract(waveforms, (self.layer,))]


class OneByOne:
    """Stock Hugging Face with sdpa on each recording alone, without padding.

    Args:
        float32: Whether the float32 reference runs, whatever dtype is compared.
        layer: The one that is returned; all layers are computed anyway.
    """

    batch, quadratic = 1, False

    def __init__(self, *, float32: bool = False, layer: str = "final"):
        self.name = f"Hugging Face{', float32' if float32 else ''}"
        self.float32 = float32
        self._number = None if layer == "final" else 0 if layer == "embed" else int(layer.removeprefix("layer_"))

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
        self._model = subject.reference if self.float32 else subject.model

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Contender`."""
        return [self._one(waveform) for waveform in waveforms]

    def _one(self, waveform: Tensor) -> Tensor:
        inputs = model_inputs(self._model, waveform[None].to(self._model.device, self._model.dtype))
        if self._number is None:
            return self._model(**inputs).last_hidden_state[0]
        return self._model(**inputs, output_hidden_states=True).hidden_states[self._number][0]


class Padded:
    """Stock Hugging Face with sdpa on padded batches, with the attention mask."""

    quadratic = False

    def __init__(self, batch: int = 8, *, by_length: bool):
        self.name = f"Hugging Face, {'sorted' if by_length else 'random'} × {batch}"
        self.batch = batch
        self._by_length = by_length

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
        self._model = subject.model

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Contender`."""
        numbers = list(range(len(waveforms)))
        if self._by_length:
            numbers.sort(key=lambda number: len(waveforms[number]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(numbers), self.batch):
            chosen = numbers[start : start + self.batch]
            found.update(zip(chosen, self._batch([waveforms[number] for number in chosen]), strict=True))
        return [found[number] for number in range(len(waveforms))]

    def _batch(self, waveforms: list[Tensor]) -> list[Tensor]:
        model: Any = self._model
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
        inputs = model_inputs(model, padded.to(model.device, model.dtype), mask.to(model.device))
        features = model(**inputs).last_hidden_state
        grid = Grid.of_config(model.config)
        return [rows[: grid.count_frames(len(wave))] for rows, wave in zip(features, waveforms, strict=True)]


class Compiled:
    """Stock Hugging Face with torch.compile and dynamic lengths, one by one; on a CPU with frozen weights for speed."""

    name, batch, quadratic = "Hugging Face, compiled", 1, False

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
        # A copy: the hooks that transformers adds to a model for hidden states would cause another compilation.
        self._model = deepcopy(subject.model)
        options: dict[str, Any] = {"freezing": True} if subject.device.type == "cpu" else {}
        self._compiled = torch.compile(self._model, dynamic=True, options=options)
        with converting("torch.compile"):
            for seconds in (1.0, 1.7):  # a second length, so that no compilation is left for later
                self.run([torch.randn(int(SAMPLE_RATE * seconds))])

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Contender`."""
        inputs = (wave[None].to(self._model.device, self._model.dtype) for wave in waveforms)
        return [self._compiled(**model_inputs(self._model, one)).last_hidden_state[0] for one in inputs]


class Torchaudio:
    """torchaudio's wav2vec 2.0 with the weights imported from Hugging Face, one by one."""

    name, batch, quadratic = "torchaudio", 1, False

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
        utils = library("torchaudio.models.wav2vec2.utils")
        self._device, self._dtype = subject.device, subject.dtype
        with converting("torchaudio's import of the model"):
            self._model = utils.import_huggingface_model(subject.reference).to(subject.device, subject.dtype).eval()

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Contender`."""
        return [self._model(wave[None].to(self._device, self._dtype))[0][0] for wave in waveforms]
