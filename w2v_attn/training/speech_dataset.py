"""Rows -> what a model trains on: augmented, normalised waveforms, padded with their masks and labels."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.inputs import standardize
from w2v_attn.runs.sources import read_row
from w2v_attn.training.options import AugmentationOptions
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import TrainingError


class Augmentation:
    """A change of waveforms that depends on nothing but the waveform and the numbers it is given.

    noises: recordings of noise, as functions that read them; empty is white noise.
    """

    def __init__(self, options: AugmentationOptions, sample_rate: int, noises: Sequence[Callable[[], Tensor]] = ()):
        if not options.speed or not all(0.25 <= factor <= 4 for factor in options.speed):
            raise ValueError(f"augmentation.speed must be factors such as [0.9,1.0,1.1], got {options.speed}")
        if not 0 <= options.noise <= 1:
            raise ValueError(f"augmentation.noise must be a probability, got {options.noise}")
        if len(options.snr) != 2 or options.snr[0] > options.snr[1]:
            raise ValueError(f"augmentation.snr must be [least,greatest] in decibel, got {options.snr}")
        if options.silence < 0:
            raise ValueError(f"augmentation.silence must be seconds, got {options.silence}")
        self._options, self._rate, self._noises = options, sample_rate, noises

    @property
    def longest_factor(self) -> float:
        """By how much the slowest speed lengthens a recording."""
        return 1 / min(self._options.speed)

    @property
    def shortest_factor(self) -> float:
        """By how much the fastest speed shortens a recording."""
        return 1 / max(self._options.speed)

    def apply(self, waveform: Tensor, seed: Sequence[int]) -> Tensor:
        """waveform: float32 [samples]. seed: the same numbers, the same change."""
        options, rng = self._options, np.random.default_rng(seed)
        wave = waveform.numpy()
        factor = options.speed[int(rng.integers(len(options.speed)))]
        if factor != 1:
            wave = soxr.resample(wave, self._rate * factor, self._rate, "HQ")
        if options.silence > 0:
            wave = np.pad(wave, tuple(rng.integers(0, int(options.silence * self._rate) + 1, 2)))
        if rng.random() < options.noise:
            wave = wave + self._noise(len(wave), np.sqrt(np.mean(wave**2)), rng)
        return torch.from_numpy(np.ascontiguousarray(wave, np.float32))

    def _noise(self, samples: int, level: float, rng: np.random.Generator) -> np.ndarray:
        """float32 [samples], as far below `level` as the drawn ratio says."""
        if self._noises:
            noise = self._noises[int(rng.integers(len(self._noises)))]().numpy()
            start = rng.integers(len(noise))
            noise = np.resize(np.roll(noise, -start), samples)
        else:
            noise = rng.standard_normal(samples, np.float32)
        own = np.sqrt(np.mean(noise**2)) + 1e-9
        return noise * (level / own * 10 ** (-rng.uniform(self._options.snr[0], self._options.snr[1]) / 20))


KEPT_SAMPLES = 16_000 * 3600 * 4  # a gigabyte of recordings stays in memory; what is beyond is read at every pass


class SpeechDataset(Dataset[tuple[Tensor, list[int]]]):
    """(waveform as the model hears it, target) of a row; its augmentation follows from the number that comes with it.

    Keys are (index of the row, number), see `batches.LengthBatchSampler`; the same key gives the same waveform.

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


class PaddingCollator:
    """Pads what `SpeechDataset` gives. frames_of: int64 [B] of samples -> frames of the model."""

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


WINDOW = 20  # batches whose recordings are sorted by length before they are cut


class LengthBatchSampler(Sampler[list[tuple[int, int]]]):
    """The batches of one process, from the first update to the last: lists of (index, number).

    index: of the recording. number: how often the recording was trained on before; without classes, the pass.

    All of them follow from the lengths, the classes and the seed alone, so that a run that was killed goes on with the
    same ones. Each pass over the data is shuffled anew, sorted by length inside windows, and cut where a batch, padded,
    would be longer than its budget. With several processes, pass m of process r of w is batch w·m + r of the same list:
    two processes see in one update what one process sees in two accumulated passes.

    lengths: seconds of each recording, as long as it can get. seconds: the budget of a batch.
    count: forward passes of this process. classes: of each recording; in a pass every class then has as many recordings
    as the most common one: each of them equally often, and the rest drawn anew. None: each recording once.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        seconds: float,
        count: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        classes: Sequence[Hashable] | None = None,
    ):
        self._lengths, self._seconds, self._count, self._seed = lengths, seconds, count, seed
        self._rank, self._world_size = rank, world_size
        members = defaultdict[Hashable, list[int]](list)
        for index in range(len(lengths)):
            members[classes[index] if classes else None].append(index)
        self._members = list(members.values())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        given = position = number = 0
        before: Counter[int] = Counter()
        while given < self._count:
            for batch in self.one_pass(number):
                numbered = []
                for index in batch:
                    numbered.append((index, before[index]))
                    before[index] += 1
                if position % self._world_size == self._rank and given < self._count:
                    yield numbered
                    given += 1
                position += 1
            number += 1

    def one_pass(self, number: int) -> list[list[int]]:
        """The batches of a pass over all recordings."""
        rng = random.Random(f"{self._seed} {number}")
        indices = self._indices(rng)
        order = rng.sample(indices, len(indices))
        mean = sum(self._lengths[i] for i in order) / len(order)
        window = WINDOW * max(1, int(self._seconds / mean))
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            batches += self._cut(sorted(order[start : start + window], key=lambda i: self._lengths[i]))
        rng.shuffle(batches)
        return batches

    def _indices(self, rng: random.Random) -> list[int]:
        """The recordings of a pass, some of them several times where classes are balanced."""
        most = max(map(len, self._members))
        indices: list[int] = []
        for members in self._members:
            times, rest = divmod(most, len(members))
            indices += members * times + rng.sample(members, rest)
        return indices

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        """LengthBatchSampler of neighbours; the last is the longest: its length times their number is what padding makes."""
        batch: list[int] = []
        for index in order:
            if batch and (len(batch) + 1) * self._lengths[index] > self._seconds:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch
