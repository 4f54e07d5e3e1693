"""Every audio family of the installed transformers is supported, or refused with a reason."""

import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.families import FAMILIES, UNSUPPORTED, is_installed
from w2v_attn.checkpoints.huggingface_folder import read_config

# Settings of wav2vec 2.0's convolutions over the waveform.
CONVOLUTIONS = {"conv_dim", "conv_kernel", "conv_stride"}
NESTED = ("audio_config", "speech_config", "audio_encoder_config")


def settings(config_class):
    annotated = [vars(parent).get("__annotations__", {}) for parent in config_class.__mro__]
    return {name for names in annotated for name in names} | set(inspect.signature(config_class.__init__).parameters)


def has_convolutions(family):
    """Return whether the config of a family, or that of its audio encoder, describes wav2vec 2.0's convolutions."""
    package = f"transformers.models.{model_type_to_module_name(family)}"
    spec = find_spec(package)
    folders = [] if spec is None else map(Path, spec.submodule_search_locations or ())
    text = "".join(path.read_text(encoding="utf-8") for f in folders for path in f.glob("configuration_*.py"))
    if not any(name in text for name in ("conv_stride", *NESTED)):
        return False
    config_class = getattr(import_module(package), CONFIG_MAPPING_NAMES[family])
    if settings(config_class) >= CONVOLUTIONS:
        return True
    if not any(name in text for name in NESTED):
        return False
    try:
        config = config_class()
    except (TypeError, ValueError):  # it joins configs that have no defaults
        return False
    inner = [getattr(config, name, None) for name in NESTED]
    return any(isinstance(one, PretrainedConfig) and settings(type(one)) >= CONVOLUTIONS for one in inner)


@pytest.mark.slow
def test_a_family_with_the_convolutions_of_wav2vec_2_is_supported_or_refused_with_a_reason():
    found = {family for family in CONFIG_MAPPING_NAMES if has_convolutions(family)}
    assert {"wav2vec2", "hubert", "wavlm", "sew", "sew-d", "speecht5", "wav2vec2-conformer"} <= found
    if "omniasr" in CONFIG_MAPPING_NAMES:
        assert {"omniasr_audio", "omniasr_ctc", "omniasr"} <= found
    assert found - set(FAMILIES) - set(UNSUPPORTED) == set()


@pytest.mark.parametrize("heads", ["CTC", "AUDIO_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR"])
def test_a_family_with_a_head_for_speech_is_supported_or_refused_with_a_reason(heads):
    found = set(getattr(modeling_auto, f"MODEL_FOR_{heads}_MAPPING_NAMES"))
    assert found - set(FAMILIES) - set(UNSUPPORTED) == set()


def test_no_family_is_both_supported_and_refused():
    assert not set(FAMILIES) & set(UNSUPPORTED)


@pytest.mark.parametrize("family", ["sew-d", "speecht5", "whisper", "parakeet_ctc", "seamless_m4t"])
def test_a_refusal_gives_the_reason_and_what_is_supported(family, tmp_path):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    assert UNSUPPORTED[family] in str(caught.value)
    assert "Supported are: wav2vec2" in str(caught.value)


# Published sizes of checkpoints in conf/model: family, blocks, width, heads, feed-forward, millions of parameters.
SIZES = {
    "base": ("wav2vec2", 12, 768, 12, 3072, 94),
    "large": ("wav2vec2", 24, 1024, 16, 4096, 315),
    "xlsr_1b": ("wav2vec2", 48, 1280, 16, 5120, 963),
    "xlsr_2b": ("wav2vec2", 48, 1920, 16, 7680, 2160),
    "mhubert_147": ("hubert", 12, 768, 12, 3072, 94),
    "wavlm_base_plus": ("wavlm", 12, 768, 12, 3072, 94),
    "wavlm_large": ("wavlm", 24, 1024, 16, 4096, 316),
    "w2v_bert_2": ("wav2vec2-bert", 24, 1024, 16, 4096, 580),
    "omniasr_300m": ("omniasr_audio", 24, 1024, 16, 4096, 315),
}


@pytest.mark.parametrize("name", SIZES)
def test_models_of_the_published_sizes_have_blocks_that_are_replaced(name):
    import torch
    from transformers import AutoModel

    from w2v_attn import MultiHeadSelfAttention, replace_attention

    family, blocks, width, heads, feed_forward, millions = SIZES[name]
    if not is_installed(family):
        pytest.skip(f"this transformers has no {family}")
    config = AutoConfig.for_model(
        family,
        num_hidden_layers=blocks,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        **({} if family == "wav2vec2-bert" or "omniasr" in family else layer_norms(blocks)),
    )
    with torch.device("meta"):  # shapes without memory
        model = AutoModel.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    replace_attention(model)
    assert sum(isinstance(module, MultiHeadSelfAttention) for module in model.modules()) == blocks


def layer_norms(blocks):
    """Return how the larger checkpoints place their norms."""
    large = blocks > 12
    return {
        "do_stable_layer_norm": large,
        "feat_extract_norm": "layer" if large else "group",
        "conv_bias": large,
    }
