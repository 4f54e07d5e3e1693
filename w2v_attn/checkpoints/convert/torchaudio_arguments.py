"""Arguments of `torchaudio.models.wav2vec2_model`, and conversion between them and Hugging Face's config.

Source: torchaudio 2.11, models/wav2vec2/model.py and components.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.json_object import read_json

ARGUMENTS = "arguments.json"
POSITION_THERE = "encoder.transformer.pos_conv_embed.conv"

# Hugging Face's option -> the argument of torchaudio's builder.
OPTIONS = {
    "hidden_size": "encoder_embed_dim",
    "num_hidden_layers": "encoder_num_layers",
    "num_attention_heads": "encoder_num_heads",
    "intermediate_size": "encoder_ff_interm_features",
    "num_conv_pos_embeddings": "encoder_pos_conv_kernel",
    "num_conv_pos_embedding_groups": "encoder_pos_conv_groups",
    "conv_bias": "extractor_conv_bias",
    "do_stable_layer_norm": "encoder_layer_norm_first",
    "feat_proj_dropout": "encoder_projection_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout",
    "hidden_dropout": "encoder_dropout",
    "layerdrop": "encoder_layer_drop",
}
NORMS = {"group_norm": "group", "layer_norm": "layer"}
NORMS_THERE = {ours: theirs for theirs, ours in NORMS.items()}

# Architectures that torchaudio releases: (channels, blocks, feed-forward channels, norm of the convolutions) ->
# what the shapes do not show: (heads, whether the layer norm comes first).
RELEASED: Mapping[tuple[Any, ...], tuple[int, bool]] = {
    (768, 12, 3072, "group_norm"): (12, False),  # wav2vec2_base, hubert_base
    (1024, 24, 4096, "group_norm"): (16, False),  # wav2vec2_large
    (1024, 24, 4096, "layer_norm"): (16, True),  # wav2vec2_large_lv60k, wav2vec2_xlsr_300m, hubert_large
    (1280, 48, 5120, "layer_norm"): (16, True),  # hubert_xlarge, wav2vec2_xlsr_1b
    (1920, 48, 7680, "layer_norm"): (16, True),  # wav2vec2_xlsr_2b
}
STRIDES: Mapping[tuple[int, ...], tuple[int, ...]] = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}
# Used in training only and absent from state dicts: torchaudio's defaults for its base model.
DROPOUTS = {
    "encoder_projection_dropout": 0.1,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_drop": 0.1,
}


def config_from_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return Hugging Face's config values for torchaudio's arguments.

    wav2vec 2.0 and HuBERT are one model in torchaudio; it becomes wav2vec 2.0.
    """
    layers = arguments["extractor_conv_layer_config"]
    outputs = arguments["aux_num_out"]
    head = {"vocab_size": outputs, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if outputs else {}
    return {
        "model_type": "wav2vec2",
        "architectures": ["Wav2Vec2ForCTC" if outputs else "Wav2Vec2Model"],
        "feat_extract_norm": NORMS[arguments["extractor_mode"]],
        "conv_dim": [dim for dim, _, _ in layers],
        "conv_kernel": [kernel for _, kernel, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        **{ours: arguments[theirs] for ours, theirs in OPTIONS.items()},
        **head,
    }


def arguments_from_weights(source: str, tensors: Mapping[str, Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of torchaudio's builder for a state dict; `given` overrides what the tensors show."""
    visible = _visible(source, tensors)
    arguments = DROPOUTS | visible | given
    sizes = ("encoder_embed_dim", "encoder_num_layers", "encoder_ff_interm_features", "extractor_mode")
    known = RELEASED.get(tuple(visible[name] for name in sizes))
    if known is not None:
        arguments = dict(zip(("encoder_num_heads", "encoder_layer_norm_first"), known, strict=True)) | arguments
    shapes = [tensors[name].shape for name in _numbered(tensors, "feature_extractor.conv_layers.{}.conv.weight")]
    kernels = tuple(shape[-1] for shape in shapes if len(shape) == 3)
    if "extractor_conv_layer_config" not in given and kernels in STRIDES:
        channels = [shape[0] for shape in shapes]
        arguments["extractor_conv_layer_config"] = list(zip(channels, kernels, STRIDES[kernels], strict=True))
    hidden = {
        "encoder_num_heads": "the number of heads",
        "encoder_layer_norm_first": "whether the layer norm comes first",
        "extractor_conv_layer_config": "the strides of the convolutions",
    }
    if absent := [name for name in hidden if name not in arguments]:
        shown = ", ".join(f"{name}: {visible[name]}" for name in sizes)
        raise CheckpointError(
            f"{source} has sizes that torchaudio does not release ({shown}; kernels {list(kernels)}), and its weights "
            f"do not show {' and '.join(hidden[name] for name in absent)}. Write a file {ARGUMENTS} next to it with "
            f"these arguments of torchaudio.models.wav2vec2_model: {', '.join(absent)}"
        )
    return arguments


def _visible(source: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments that the shapes and names of the tensors show."""

    def shape(dimensions: int, *names: str) -> torch.Size:
        for name in names:
            if name in tensors:
                if tensors[name].dim() != dimensions:
                    raise CheckpointError(
                        f"the weights of {source} are not those of a torchaudio model:\n"
                        f"  of shape {list(tensors[name].shape)}, not of {dimensions} dimensions: {name}"
                    )
                return tensors[name].shape
        raise CheckpointError(f"the weights of {source} are incomplete:\n  missing: {names[0]}")

    transformer = "encoder.transformer"
    channels, _ = shape(2, "encoder.feature_projection.projection.weight")
    _, each, kernel = shape(3, f"{POSITION_THERE}.parametrizations.weight.original1", f"{POSITION_THERE}.weight_v")
    wide, _ = shape(2, f"{transformer}.layers.0.feed_forward.intermediate_dense.weight")
    every = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    return {
        "extractor_mode": "layer_norm" if every else "group_norm",
        "extractor_conv_bias": "feature_extractor.conv_layers.0.conv.bias" in tensors,
        "encoder_embed_dim": channels,
        "encoder_pos_conv_kernel": kernel,
        "encoder_pos_conv_groups": channels // max(each, 1),
        "encoder_num_layers": len(_numbered(tensors, f"{transformer}.layers.{{}}.final_layer_norm.weight")),
        "encoder_ff_interm_features": wide,
        "aux_num_out": shape(2, "aux.weight")[0] if "aux.weight" in tensors else None,
    }


def _numbered(tensors: Mapping[str, Tensor], name: str) -> list[str]:
    """Return the existing names with 0, 1, 2, …, up to the first one that is missing."""
    found: list[str] = []
    while name.format(len(found)) in tensors:
        found.append(name.format(len(found)))
    return found


def arguments_of_module(module: Any) -> dict[str, Any]:
    """Return the arguments of torchaudio's builder that made a module, read from its submodules."""
    transformer = module.encoder.transformer
    position, layers = transformer.pos_conv_embed.conv, transformer.layers
    convolutions = [layer.conv for layer in module.feature_extractor.conv_layers]
    first = layers[0]
    if type(first.attention).__name__ != "SelfAttention":
        raise TypeError(f"its attention is {type(first.attention).__name__}")
    return {
        "extractor_mode": "group_norm"
        if isinstance(module.feature_extractor.conv_layers[0].layer_norm, nn.GroupNorm)
        else "layer_norm",
        "extractor_conv_layer_config": [
            (conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convolutions
        ],
        "extractor_conv_bias": convolutions[0].bias is not None,
        "encoder_embed_dim": first.attention.embed_dim,
        "encoder_projection_dropout": module.encoder.feature_projection.dropout.p,
        "encoder_pos_conv_kernel": position.kernel_size[0],
        "encoder_pos_conv_groups": position.groups,
        "encoder_num_layers": len(layers),
        "encoder_num_heads": first.attention.num_heads,
        "encoder_attention_dropout": first.attention.dropout,
        "encoder_ff_interm_features": first.feed_forward.intermediate_dense.out_features,
        "encoder_ff_interm_dropout": first.feed_forward.intermediate_dropout.p,
        "encoder_dropout": first.dropout.p,
        "encoder_layer_norm_first": first.layer_norm_first,
        "encoder_layer_drop": transformer.layer_drop,
        "aux_num_out": None if module.aux is None else module.aux.out_features,
    }


def read_arguments(path: Path) -> dict[str, Any]:
    """Return the arguments in a JSON file. Raises CheckpointError if it has others or invalid values."""
    given = read_json(path)
    known = {*OPTIONS.values(), "extractor_mode", "extractor_conv_layer_config", "aux_num_out"}
    if unknown := sorted(given.keys() - known):
        raise CheckpointError(
            f"{path} has {', '.join(unknown)}: expected arguments of torchaudio.models.wav2vec2_model, "
            f"{', '.join(sorted(known))}"
        )
    layers = given.get("extractor_conv_layer_config", [])
    if not isinstance(layers, list) or not all(isinstance(layer, list) and len(layer) == 3 for layer in layers):
        raise CheckpointError(
            f"{path} is not valid: extractor_conv_layer_config must be [[channels, kernel, stride], …]"
        )
    if given.get("extractor_mode", "layer_norm") not in list(NORMS):  # it may be of any type
        raise CheckpointError(f"{path} is not valid: extractor_mode must be {' or '.join(NORMS)}")
    return given


def arguments_from_config(config: Any, *, outputs: int | None) -> dict[str, Any]:
    """Return the arguments for a Hugging Face config. outputs: size of the CTC head; None: there is no head."""
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    return {
        "extractor_mode": NORMS_THERE[config.feat_extract_norm],
        "extractor_conv_layer_config": [list(layer) for layer in layers],
        **{theirs: getattr(config, ours) for ours, theirs in OPTIONS.items()},
        "aux_num_out": outputs,
    }
