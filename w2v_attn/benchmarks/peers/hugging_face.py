"""Stock Hugging Face with sdpa: one by one, in padded batches, and compiled."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from w2v_attn.benchmarks.peers.peer import Subject, converting
from w2v_attn.encoder.packed_waveforms import Grid


class OneByOne:
    """Each recording alone: no padding.

    float32: the reference, whatever is compared. layer: the one that is given out; all are computed whichever it is.
    """

    batch, quadratic = 1, False

    def __init__(self, *, float32: bool = False, layer: str = "final"):
        self.name = f"Hugging Face{', float32' if float32 else ''}"
        self.float32 = float32
        self._number = None if layer == "final" else 0 if layer == "embed" else int(layer.removeprefix("layer_"))

    def prepare(self, subject: Subject) -> None:
        self._model = subject.reference if self.float32 else subject.model

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return [self._one(waveform) for waveform in waveforms]

    def _one(self, waveform: Tensor) -> Tensor:
        x = waveform[None].to(self._model.device, self._model.dtype)
        if self._number is None:
            return self._model(x).last_hidden_state[0]
        return self._model(x, output_hidden_states=True).hidden_states[self._number][0]


class Padded:
    """Batches padded to their longest, with the mask that keeps real frames from attending to padding."""

    quadratic = False

    def __init__(self, batch: int = 8, *, by_length: bool):
        self.name = f"Hugging Face, {'sorted' if by_length else 'random'} × {batch}"
        self.batch = batch
        self._by_length = by_length

    def prepare(self, subject: Subject) -> None:
        self._model = subject.model

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
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
        features = model(padded.to(model.device, model.dtype), attention_mask=mask.to(model.device)).last_hidden_state
        grid = Grid.of_config(model.config)
        return [rows[: grid.count_frames(len(wave))] for rows, wave in zip(features, waveforms, strict=True)]


class Compiled:
    """torch.compile with dynamic lengths, one by one; on a CPU with frozen weights, which is faster there."""

    name, batch, quadratic = "Hugging Face, compiled", 1, False

    def prepare(self, subject: Subject) -> None:
        # A copy: what transformers hangs on a model that is asked for hidden states would compile it again.
        self._model = deepcopy(subject.model)
        options: dict[str, Any] = {"freezing": True} if subject.device.type == "cpu" else {}
        self._compiled = torch.compile(self._model, dynamic=True, options=options)
        with converting("torch.compile"):
            for seconds in (1.0, 1.7):  # a second length, so that nothing is compiled again later
                self.run([torch.randn(int(16_000 * seconds))])

    @torch.no_grad()
    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        model = self._model
        return [self._compiled(wave[None].to(model.device, model.dtype)).last_hidden_state[0] for wave in waveforms]
