"""Rows -> what a model trains on: augmented, normalised waveforms, padded with their masks and labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.inputs import standardize
from w2v_attn.runs.row_reader import read_row
from w2v_attn.training.augmentation import Augmentation
from w2v_attn.training.errors import TrainingError
from w2v_attn.training.tasks.task import Task

KEPT_SAMPLES = 16_000 * 3600 * 4  # a gigabyte of recordings stays in memory; what is beyond is read at every pass


class Recordings(Dataset[tuple[Tensor, list[int]]]):
    """(waveform as the model hears it, target) of a row; its augmentation follows from the number that comes with it.

    Keys are (index of the row, number), see `batches.Batches`; the same key gives the same waveform.

    do_normalize: whether waveforms are brought to mean 0 and variance 1, as the checkpoint wants it.
    keep: whether decoded recordings stay in memory; each worker process would keep its own.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        task: Task,
        augmentation: Augmentation,
        *,
        sample_rate: int,
        do_normalize: bool,
        seed: int,
        keep: bool = True,
    ):
        self._rows, self._task, self._augmentation, self._seed = rows, task, augmentation, seed
        self._rate, self._do_normalize = sample_rate, do_normalize
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT_SAMPLES if keep else 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, list[int]]:
        index, number = key
        waveform = self._augmentation.apply(self._waveform(index), (self._seed, number, index)).double()
        if self._do_normalize:
            waveform = standardize(waveform)
        return waveform.float(), self._task.target(self._rows[index])

    def _waveform(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        row = self._rows[index]
        try:
            waveform = read_row(row, sample_rate=self._rate).waveform
        except ValueError as error:
            raise TrainingError(f"{row.path} could be read before training, but now it {error}") from error
        if len(waveform) <= self._room:
            self._room -= len(waveform)
            self._kept[index] = waveform
        return waveform


class Collate:
    """Pads what `Recordings` gives. frames_of: int64 [B] of samples -> frames of the model."""

    def __init__(self, frames_of: Callable[[Tensor], Tensor]):
        self._frames_of = frames_of

    def __call__(self, items: Sequence[tuple[Tensor, list[int]]]) -> dict[str, Any]:
        """input_values float32 [B, samples], attention_mask int64 likewise, labels int64 [B, L], frames int64 [B],
        lengths: samples of each as plain numbers, for the host asks for them.
        """
        waveforms = [waveform for waveform, _ in items]
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        targets = [torch.tensor(target, dtype=torch.long) for _, target in items]
        return {
            "input_values": pad_sequence(waveforms, batch_first=True),
            "attention_mask": real.long(),
            "labels": pad_sequence(targets, batch_first=True, padding_value=-100),
            "frames": self._frames_of(lengths),
            "lengths": lengths.tolist(),
        }
