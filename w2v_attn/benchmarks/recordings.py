"""What encoders are timed on: lengths that corpora have, and noise that is as loud as speech is, now and then."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.encoder.cost import SAMPLE_RATE

# 24 utterances, 1.3 to 14.6 s, 6.4 in the mean: many short ones and few long ones, in an order without order.
_LENGTHS = [round(1.3 * (14.6 / 1.3) ** ((number / 23) ** 0.74), 2) for number in range(24)]
RAGGED = tuple(random.Random(0).sample(_LENGTHS, len(_LENGTHS)))
# 384 utterances, 2 to 17 s, 12 in the mean, as LibriSpeech's training sets have them: what a GPU has work for.
_LENGTHS_OF_A_CORPUS = [round(17 - 15 * (number / 383) ** 2, 2) for number in range(384)]
CORPUS = tuple(random.Random(0).sample(_LENGTHS_OF_A_CORPUS, len(_LENGTHS_OF_A_CORPUS)))


def sets(names: Sequence[str], long_seconds: float) -> dict[str, tuple[float, ...]]:
    """Name -> seconds of the recordings in it.

    Raises:
        ValueError: an unknown name.
    """
    known = {
        "ragged": RAGGED,
        "corpus": CORPUS,
        "10s": (10.0,) * 8,
        "30s": (30.0,) * 4,
        "long": (long_seconds,),
    }
    for name in names:
        if name not in known:
            raise ValueError(f"sets must be some of {', '.join(known)}, got {name}")
    return {name: known[name] for name in names}


def waveforms(durations: Sequence[float]) -> list[Tensor]:
    """float32 [samples] for each of the durations in seconds, with mean 0 and variance 1; the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for duration in durations:
        samples = int(duration * SAMPLE_RATE)
        # Syllables: a loudness that changes four times a second, over two orders of magnitude.
        knots = torch.randn(1, 1, int(4 * duration) + 2, generator=generator)
        loudness = torch.nn.functional.interpolate(knots, samples, mode="linear")[0, 0].exp()
        wave = loudness * torch.randn(samples, generator=generator)
        made.append((wave - wave.mean()) / wave.std())
    return made
