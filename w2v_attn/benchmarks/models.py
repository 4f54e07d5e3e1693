"""Models with random weights, of the sizes that are released."""

from typing import Any

import torch

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
# Name -> the family, and what differs from the defaults of its config, which are those of its base model.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("Wav2Vec2", _BASE),
    "large": ("Wav2Vec2", _LARGE),  # wav2vec2-large-lv60
    "wavlm_base": ("WavLM", _BASE),
    "wavlm_large": ("WavLM", {**_LARGE, "conv_bias": False}),
    "tiny": ("Wav2Vec2", {**_BASE, **_TINY}),
    "tiny_large": ("Wav2Vec2", {**_LARGE, **_TINY}),
    "tiny_wavlm": ("WavLM", {**_BASE, **_TINY}),
}


def config(size: str) -> Any:
    """The configuration of a size.

    Raises:
        ValueError: an unknown name.
    """
    import transformers

    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size}")
    family, changes = SIZES[size]
    made = getattr(transformers, f"{family}Config")(**changes)
    made._attn_implementation = "eager" if family == "WavLM" else "sdpa"  # it has no other
    return made


def random_model(size: str, head: str = "Model") -> Any:
    """A stock model of a size, float32, in evaluation mode; the same weights every time. head: Model or ForCTC."""
    import transformers

    made = config(size)
    torch.manual_seed(0)
    model = getattr(transformers, f"{SIZES[size][0]}{head}")(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start as zeros and ones, with which a forgotten one would hide
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()
