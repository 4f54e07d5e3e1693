"""OmniASR's encoder as a Wav2Vec2 encoder: the same features from the same weights, under other names.

It serves heads that transformers has for Wav2Vec2 and not for OmniASR. What differs:

- The weight of the positional convolution has a weight norm, whose gain is the norm of the weight itself.
- The normalization of waveforms adds another epsilon, which is no part of the model.
- In training, Wav2Vec2 drops out before the blocks and OmniASR after them, and Wav2Vec2 has SpecAugment.
"""

from typing import Any

from torch import Tensor

# The beginnings of the names of parameters: OmniASR's -> Wav2Vec2's.
NAMES = {
    "subsampling.conv_layers.": "feature_extractor.conv_layers.",
    "subsampling.": "feature_projection.",
    "encode_positions.": "encoder.pos_conv_embed.",
    "layers.": "encoder.layers.",
    "layer_norm.": "encoder.layer_norm.",
}
POSITIONS = "encoder.pos_conv_embed.conv"
SAME = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act conv_dim conv_kernel conv_stride "
    "conv_bias num_conv_pos_embeddings num_conv_pos_embedding_groups layer_norm_eps hidden_dropout attention_dropout "
    "activation_dropout layerdrop initializer_range"
).split()


def wav2vec2_config(config: Any) -> Any:
    """Return the `Wav2Vec2Config` of an `OmniASRAudioConfig`, without SpecAugment."""
    from transformers import Wav2Vec2Config

    return Wav2Vec2Config(
        **{name: getattr(config, name) for name in SAME},
        feat_extract_norm="layer",
        feat_extract_activation=config.hidden_act,
        feat_proj_dropout=0.0,
        do_stable_layer_norm=True,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
    )


def wav2vec2_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights of an `OmniASRAudioModel` by the names of `Wav2Vec2Model`."""
    found: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        begin = next(begin for begin in NAMES if name.startswith(begin))
        found[NAMES[begin] + name.removeprefix(begin)] = weight
    weight = found.pop(f"{POSITIONS}.weight")
    wide = weight.double() if weight.dtype.itemsize > 2 else weight.float()
    found[f"{POSITIONS}.parametrizations.weight.original0"] = wide.norm(dim=(0, 1), keepdim=True).to(weight.dtype)
    found[f"{POSITIONS}.parametrizations.weight.original1"] = weight
    return found
