"""Changes of a recording before the model hears it: speed, silence around it, noise."""

from collections.abc import Callable, Sequence

import numpy as np
import soxr
import torch
from torch import Tensor

from w2v_attn.training.options import AugmentationOptions


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
