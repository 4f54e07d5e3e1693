# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""The multi-head self-attention of wav2vec 2.0 as a layer of its own, inside any pretrained encoder.

- `MultiHeadSelfAttention`: the layer.
- `replace_attention`, `restore_attention`: put the layer into Hugging Face models, and stock attention back.
- `load_encoder`, `read_audio`: features of named layers from waveforms.
- `open_features`: features on disk, read lazily.

The names are imported at their first use, so that `import w2v_attn` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from w2v_attn import torchaudio_import

if TYPE_CHECKING:
    from w2v_attn.attention.layer import MultiHeadSelfAttention
    from w2v_attn.audio.read_audio import read_audio
    from w2v_attn.encoder.encoder import load_encoder
    from w2v_attn.features.open_features import open_features
    from w2v_attn.patching.replace import replace_attention, restore_attention

__version__ = "0.1.0"

__all__ = [
    "MultiHeadSelfAttention",
    "load_encoder",
    "open_features",
    "read_audio",
    "replace_attention",
    "restore_attention",
]

_MODULES = {
    "MultiHeadSelfAttention": "w2v_attn.attention.layer",
    "load_encoder": "w2v_attn.encoder.encoder",
    "open_features": "w2v_attn.features.open_features",
    "read_audio": "w2v_attn.audio.read_audio",
    "replace_attention": "w2v_attn.patching.replace",
    "restore_attention": "w2v_attn.patching.replace",
}

torchaudio_import.install_import_hook()


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
