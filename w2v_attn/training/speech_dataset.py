"""Training data: augmentation, the data set of waveforms and targets, padded batches, and batch sampling by length."""

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
from w2v_attn.runs.row_reader import read_row
from w2v_attn.training.options import AugmentationOptions
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import TrainingError


class Augmentation:
    """Random changes of a waveform, determined by the waveform and a seed.

    Args:
        options: Which changes, and how strong.
        sample_rate: Hz.
        noises: Functions that return recordings of noise; empty: white noise.
    """

    def __init__(self, options: AugmentationOptions, sample_rate: int, noises: Sequence[Callable[[], Tensor]] = ()):
        if not options.speed or not all(0.25 <= factor <= 4 for factor in options.speed):
            raise ValueError(f"augmentation.speed must be factors such as [0.9,1.0,1.1], got {options.speed}")
        if not 0 <= options.noise <= 1:
            raise ValueError(f"augmentation.noise must be a probability, got {options.noise}")
        if len(options.snr) != 2 or options.snr[0] > options.snr[1]:
            raise ValueError(f"augmentation.snr must be [min,max] in decibels, got {options.snr}")
        if options.silence < 0:
            raise ValueError(f"augmentation.silence must be seconds, got {options.silence}")
        self._options, self._rate, self._noises = options, sample_rate, noises

    @property
    def longest_factor(self) -> float:
        """Return the factor by which the slowest speed lengthens a recording."""
        return 1 / min(self._options.speed)

    @property
    def shortest_factor(self) -> float:
        """Return the factor by which the fastest speed shortens a recording."""
        return 1 / max(self._options.speed)

    def apply(self, waveform: Tensor, seed: Sequence[int]) -> Tensor:
        """Return a changed waveform, float32 [samples]; equal seeds give equal changes."""
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
        """Return noise, float32 [samples], at a random ratio to `level`, the RMS of the speech."""
        if self._noises:
            noise = self._noises[int(rng.integers(len(self._noises)))]().numpy()
            start = rng.integers(len(noise))
            noise = np.resize(np.roll(noise, -start), samples)
        else:
            noise = rng.standard_normal(samples, np.float32)
        own = np.sqrt(np.mean(noise**2)) + 1e-9
        return noise * (level / own * 10 ** (-rng.uniform(self._options.snr[0], self._options.snr[1]) / 20))


MAX_CACHED_SAMPLES = 16_000 * 3600 * 4  # one gigabyte is cached in memory; other recordings are read in every epoch


class SpeechDataset(Dataset[tuple[Tensor, list[int]]]):
    """The training recordings: (augmented and normalized waveform, target).

    Keys are (index of the row, number), see `LengthBatchSampler`; equal keys give equal waveforms.

    Args:
        rows: The recordings.
        task: Gives the target of each row.
        augmentation: Changes of the waveforms.
        sample_rate: Hz.
        do_normalize: Whether waveforms are normalized to mean 0 and variance 1, as the checkpoint expects.
        epsilon: What is added to the variance then.
        seed: Of the augmentation.
        keep: Whether decoded recordings are cached in memory; each worker process would have its own cache.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        task: Task,
        augmentation: Augmentation,
        *,
        sample_rate: int,
        do_normalize: bool,
        epsilon: float,
        seed: int,
        keep: bool = True,
    ):
        self._rows, self._task, self._augmentation, self._seed = rows, task, augmentation, seed
        self._rate, self._do_normalize, self._epsilon = sample_rate, do_normalize, epsilon
        self._cache: dict[int, Tensor] = {}
        self._free_samples = MAX_CACHED_SAMPLES if keep else 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, list[Any]]:
        index, number = key
        waveform = self._augmentation.apply(self._waveform(index), (self._seed, number, index)).double()
        if self._do_normalize:
            waveform = standardize(waveform, self._epsilon)
        return waveform.float(), self._task.target(self._rows[index])

    def _waveform(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        row = self._rows[index]
        try:
            waveform = read_row(row, sample_rate=self._rate).waveform
        except ValueError as error:
            raise TrainingError(f"{row.path} could be read before training, but now it {error}") from error
        if len(waveform) <= self._free_samples:
            self._free_samples -= len(waveform)
            self._cache[index] = waveform
        return waveform


class PaddingCollator:
    """Pads the items of `SpeechDataset` to a batch.

    Args:
        frames_of: Samples, int64 [B] -> frames of the model, int64 [B].
        target_dtype: Of targets.
    """

    def __init__(self, frames_of: Callable[[Tensor], Tensor], target_dtype: torch.dtype = torch.long):
        self._frames_of, self._target_dtype = frames_of, target_dtype

    def __call__(self, items: Sequence[tuple[Tensor, list[Any]]]) -> dict[str, Any]:
        """Return the batch of a list of items.

        Returns:
            input_values: float32 [B, samples]. attention_mask: int64 [B, samples]. labels: of `target_dtype`, [B, L],
            padded with -100. frames: int64 [B]. lengths: samples of each recording as a list, since the CPU needs them.
        """
        waveforms = [waveform for waveform, _ in items]
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        targets = [torch.tensor(target, dtype=self._target_dtype) for _, target in items]
        return {
            "input_values": pad_sequence(waveforms, batch_first=True),
            "attention_mask": real.long(),
            "labels": pad_sequence(targets, batch_first=True, padding_value=-100),
            "frames": self._frames_of(lengths),
            "lengths": lengths.tolist(),
        }


WINDOW = 20  # batches whose recordings are sorted by length before they are split


class LengthBatchSampler(Sampler[list[tuple[int, int]]]):
    """The batches of one process for the whole run, as lists of (index, number).

    `index` is that of the recording; `number` counts how often it was trained on before (without classes: the epoch).

    The batches depend only on the lengths, the classes and the seed, so a resumed run continues with the same batches.
    Each epoch is shuffled, sorted by length inside windows, and split where a padded batch would exceed its budget.
    Batch m of rank r of w processes is batch w·m + r of one list: two processes see in one step what one process sees
    in two accumulated forward passes.

    Args:
        lengths: Seconds of each recording after the longest augmentation.
        seconds: The budget of a padded batch.
        count: The number of batches.
        seed: Of the order.
        rank: The rank of this process.
        world_size: The number of processes.
        classes: The class of each recording: an epoch then has as many recordings of every class as of the most common
            one, each equally often, and the remainder at random. None: each recording once.
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
            for batch in self.epoch_batches(number):
                numbered = []
                for index in batch:
                    numbered.append((index, before[index]))
                    before[index] += 1
                if position % self._world_size == self._rank and given < self._count:
                    yield numbered
                    given += 1
                position += 1
            number += 1

    def epoch_batches(self, number: int) -> list[list[int]]:
        """Return the batches of one epoch."""
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
        """Return the recordings of an epoch, some of them several times if classes are balanced."""
        largest = max(map(len, self._members))
        indices: list[int] = []
        for members in self._members:
            times, rest = divmod(largest, len(members))
            indices += members * times + rng.sample(members, rest)
        return indices

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        """Yield batches of neighbours in a sorted order: a padded batch has its size times its last, longest length."""
        batch: list[int] = []
        for index in order:
            if batch and (len(batch) + 1) * self._lengths[index] > self._seconds:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch
