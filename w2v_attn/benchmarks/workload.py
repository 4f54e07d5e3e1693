"""The workload of benchmarks: models with random weights in released sizes, and synthetic recordings."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from w2v_attn.encoder.cost import SAMPLE_RATE

# 24 utterances, 1.3 to 14.6 s, 6.4 s on average: many short ones and few long ones, in random order.
_LENGTHS = [round(1.3 * (14.6 / 1.3) ** ((number / 23) ** 0.74), 2) for number in range(24)]
RAGGED = tuple(random.Random(0).sample(_LENGTHS, len(_LENGTHS)))
# 384 utterances, 2 to 17 s, 12 s on average, as in LibriSpeech's training sets: enough work for a GPU.
_LENGTHS_OF_A_CORPUS = [round(17 - 15 * (number / 383) ** 2, 2) for number in range(384)]
CORPUS = tuple(random.Random(0).sample(_LENGTHS_OF_A_CORPUS, len(_LENGTHS_OF_A_CORPUS)))
_BASE: dict[str, Any] = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
_LARGE: dict[str, Any] = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (32,) * 7,
}


def _omniasr(num_layers: int, channels: int) -> dict[str, Any]:
    """Return the sizes of an encoder of Omnilingual ASR, which has 16 heads in all of them."""
    return {"num_hidden_layers": num_layers, "hidden_size": channels, "intermediate_size": 4 * channels}


# Name -> family, and the differences from the defaults of its config, which describe its base model.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("Wav2Vec2", _BASE),
    "large": ("Wav2Vec2", _LARGE),  # wav2vec2-large-lv60
    "wavlm_base": ("WavLM", _BASE),
    "wavlm_large": ("WavLM", {**_LARGE, "conv_bias": False}),
    "omniasr_300m": ("OmniASRAudio", _omniasr(24, 1024)),
    "omniasr_1b": ("OmniASRAudio", _omniasr(48, 1280)),
    "omniasr_3b": ("OmniASRAudio", _omniasr(60, 2048)),
    "omniasr_7b": ("OmniASRAudio", _omniasr(128, 2048)),
    "tiny": ("Wav2Vec2", {**_BASE, **_TINY}),
    "tiny_large": ("Wav2Vec2", {**_LARGE, **_TINY}),
    "tiny_wavlm": ("WavLM", {**_BASE, **_TINY}),
    "tiny_omniasr": ("OmniASRAudio", _TINY),
}


def model_config(size: str) -> Any:
    """Return the transformers config of a size.

    Raises:
        ValueError: an unknown name.
    """
    import transformers

    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size}")
    family, changes = SIZES[size]
    config = getattr(transformers, f"{family}Config")(**changes)
    config._attn_implementation = "eager" if family == "WavLM" else "sdpa"  # WavLM has no other
    return config


def random_model(size: str, head: str = "Model") -> Any:
    """Return a stock float32 model in evaluation mode, with the same random weights every time.

    Args:
        size: A key of SIZES.
        head: `Model` or `ForCTC`.
    """
    import transformers

    config = model_config(size)
    torch.manual_seed(0)
    model = getattr(transformers, f"{SIZES[size][0]}{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start as zeros and ones, which would hide a forgotten one
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def recording_sets(names: Sequence[str], long_seconds: float) -> dict[str, tuple[float, ...]]:
    """Return set name -> lengths of its recordings in seconds.

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


def random_waveforms(durations: Sequence[float]) -> list[Tensor]:
    """Return noise with the loudness of speech, float32 [samples] each, with mean 0 and variance 1; always the same.

    Args:
        durations: Lengths in seconds.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for duration in durations:
        samples = int(duration * SAMPLE_RATE)
        # Syllables: a loudness that changes four times a second, over two orders of magnitude.
        knots = torch.randn(1, 1, int(4 * duration) + 2, generator=generator)
        loudness = torch.nn.functional.interpolate(knots, samples, mode="linear")[0, 0].exp()
        wave = loudness * torch.randn(samples, generator=generator)
        found.append((wave - wave.mean()) / wave.std())
    return found
