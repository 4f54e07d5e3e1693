"""Heads on OmniASR's encoder: the config and the weights of the model that carries one.

transformers has a CTC head for it, whose config nests that of the encoder, and no classifier: there the encoder becomes
a Wav2Vec2 encoder with the same features.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.encoder_parts import encoder_config
from w2v_attn.checkpoints.families import is_installed, is_omniasr, not_installed
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.omniasr_as_wav2vec2 import wav2vec2_config, wav2vec2_weights
from w2v_attn.checkpoints.processor_files import OMNIASR_EPSILON


def head_config(config: Any, head: str) -> Any:
    """Return a copy of a config for a model with a head, which may be of another class than that of the encoder.

    Args:
        config: The config of a model with or without a head.
        head: The suffix of the class with the head, "ForCTC" or "ForSequenceClassification".
    """
    if not is_omniasr(config) or (config.model_type == "omniasr_ctc" and head == "ForCTC"):
        return copy.deepcopy(config)
    audio = encoder_config(config)
    if head != "ForCTC":
        return wav2vec2_config(audio)
    from transformers import OmniASRCTCConfig

    return OmniASRCTCConfig(audio_config=audio.to_dict(), initializer_range=audio.initializer_range)


def random_encoder(values: dict[str, Any], seed: int) -> Checkpoint:
    """Return an encoder with random weights, to be trained like one of a checkpoint without a head.

    Args:
        values: model.config: the model_type and values of its config in transformers.
        seed: Of the weights.

    Raises:
        ValueError: The installed transformers does not have the family, or rejects the values.
    """
    from transformers import AutoConfig, AutoModel

    family = values["model_type"]
    if not is_installed(family):
        raise ValueError(not_installed(family))
    try:
        config = AutoConfig.for_model(family, **{key: value for key, value in values.items() if key != "model_type"})
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise ValueError(f"model.config is not valid: {error}") from error
    torch.manual_seed(seed)
    model = AutoModel.from_config(encoder_config(config)).eval()
    default = "the family's default"
    return Checkpoint(model, "random weights", Path(), (), (), 16_000, True, OMNIASR_EPSILON, default)


def encoder_weights(encoder: Any, config: Any) -> dict[str, Tensor]:
    """Return the weights of an encoder by the names of the encoder in a model with this config."""
    if is_omniasr(encoder.config) and not is_omniasr(config):
        return wav2vec2_weights(encoder)
    return encoder.state_dict()
