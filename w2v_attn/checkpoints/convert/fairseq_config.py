"""Hugging Face config values from fairseq's options, and CTC symbols from fairseq's dictionaries.

Source: fairseq, the dataclasses of models/wav2vec/wav2vec2.py, models/wav2vec/wav2vec2_asr.py, models/hubert/hubert.py
and models/hubert/hubert_asr.py, for the names of the options, their meaning and their defaults; data/dictionary.py
and criterions/ctc.py, for dictionaries.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

# Hugging Face's option -> fairseq's option with the same value.
OPTIONS = {
    "num_hidden_layers": "encoder_layers",
    "hidden_size": "encoder_embed_dim",
    "intermediate_size": "encoder_ffn_embed_dim",
    "num_attention_heads": "encoder_attention_heads",
    "do_stable_layer_norm": "layer_norm_first",
}
# Hugging Face's option -> (fairseq's option, its default in checkpoints older than the option).
OPTIONS_WITH_DEFAULT = {
    "conv_bias": ("conv_bias", False),
    "num_conv_pos_embeddings": ("conv_pos", 128),
    "num_conv_pos_embedding_groups": ("conv_pos_groups", 16),
    "hidden_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "feat_proj_dropout": ("dropout_input", 0.0),
    "layerdrop": ("encoder_layerdrop", 0.0),
}
OPTIONS_OF_CONTRAST = {
    "feat_quantizer_dropout": ("dropout_features", 0.0),
    "num_codevectors_per_group": ("latent_vars", 320),
    "num_codevector_groups": ("latent_groups", 2),
    "contrastive_logits_temperature": ("logit_temp", 0.1),
    "num_negatives": ("num_negatives", 100),
}
# Options of fine-tuning; they replace those of pre-training.
OPTIONS_OF_TUNING = {
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "feat_proj_dropout": "dropout_input",
    "layerdrop": "layerdrop",
    "final_dropout": "final_dropout",
    "apply_spec_augment": "apply_mask",
    "mask_time_prob": "mask_prob",
    "mask_time_length": "mask_length",
    "mask_feature_prob": "mask_channel_prob",
    "mask_feature_length": "mask_channel_length",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "relu": "relu", "swish": "swish"}
NORMS = {"default": "group", "layer_norm": "layer"}
# Options that Hugging Face's model lacks -> the values with which they change nothing.
PLAIN = {
    "layer_type": (None, "transformer"),
    "pos_conv_depth": (None, 1),
    "crop_seq_to_multiple": (None, 1),
    "quantize_input": (None, False),
}


def encoder_config(path: Path, options: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Return the config values of a Hugging Face encoder of the family `model_type` from a pre-trained model's options.

    Masking options are not converted: pre-training masks about half of the frames, far more than fine-tuning.

    Raises:
        CheckpointError: An option is missing, or has a value that Hugging Face's model does not support.
    """
    needed = (*OPTIONS.values(), "conv_feature_layers", "extractor_mode")
    if absent := [name for name in needed if options.get(name) is None]:
        raise CheckpointError(f"the config in {path} does not say {', '.join(absent)}")
    for name, plain in PLAIN.items():
        if options.get(name) not in plain:
            raise CheckpointError(
                f"{path} has {name}={options[name]}, which Hugging Face's model does not support: expected {plain[-1]}"
            )
    layers = parse_convolutions(options["conv_feature_layers"], path)
    config: dict[str, Any] = {
        "model_type": model_type,
        "feat_extract_norm": _one_of(path, "extractor_mode", options["extractor_mode"], NORMS),
        "hidden_act": _one_of(path, "activation_fn", options.get("activation_fn") or "gelu", ACTIVATIONS),
        "conv_dim": [dim for dim, _, _ in layers],
        "conv_kernel": [kernel for _, kernel, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        **{ours: options[theirs] for ours, theirs in OPTIONS.items()},
        **_with_defaults(options, OPTIONS_WITH_DEFAULT),
    }
    if model_type == "hubert":
        config |= {"feat_proj_layer_norm": True, "conv_pos_batch_norm": bool(options.get("conv_pos_batch_norm"))}
    return config


def tuning_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config values that fine-tuning set: dropouts and masking."""
    return {ours: options[theirs] for ours, theirs in OPTIONS_OF_TUNING.items() if options.get(theirs) is not None}


def contrast_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config values of wav2vec 2.0's pre-training heads. A size of 0 means the default size."""
    final = options.get("final_dim") or options["encoder_embed_dim"]
    sizes = {"proj_codevector_dim": final, "codevector_dim": options.get("latent_dim") or final}
    return sizes | _with_defaults(options, OPTIONS_OF_CONTRAST)


def _with_defaults(options: Mapping[str, Any], table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    return {
        ours: default if options.get(theirs) is None else options[theirs] for ours, (theirs, default) in table.items()
    }


def _one_of(path: Path, name: str, value: Any, table: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in table:
        raise CheckpointError(f"{path} has {name}={value}: expected {' or '.join(table)}")
    return table[value]


def parse_convolutions(text: str, path: Path) -> list[tuple[int, int, int]]:
    """Parse (channels, kernel, stride) of each convolution from `[(512,10,5)] + [(512,3,2)]*4 + [(512,2,2)]*2`.

    Only lists of numbers, their sums and their multiples are parsed; nothing is evaluated.

    Raises:
        CheckpointError: The text contains anything else.
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [value(element) for element in elements]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [*value(left), *value(right)]
            case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int() as times)) if times <= 100:
                return [*value(left)] * times
        raise ValueError(f"{ast.unparse(node)} is not expected there")

    try:
        layers = [tuple(layer) for layer in value(ast.parse(text.strip(), mode="eval").body)]
        if not 0 < len(layers) <= 100 or not all(len(layer) == 3 and min(layer) > 0 for layer in layers):
            raise ValueError("each convolution must be (channels, kernel, stride)")
    except (ValueError, TypeError, SyntaxError, AttributeError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"conv_feature_layers in {path} cannot be read: expected such as [(512,10,5)] + [(512,3,2)]*4, "
            f"found {text!r} ({error})"
        ) from error
    return layers  # type: ignore[return-value]


# fairseq's dictionaries begin with these; the first is CTC's blank, which Hugging Face calls <pad>.
SPECIAL, SPECIAL_THERE = ("<s>", "<pad>", "</s>", "<unk>"), ("<pad>", "<s>", "</s>", "<unk>")


def read_symbols(path: Path, task: Mapping[str, Any], state: Any, outputs: int) -> tuple[str, ...] | None:
    """Return the symbols of a CTC head from the dictionary next to the checkpoint or in it; None if there is none."""
    labels = task.get("labels") or "ltr"  # a list in HuBERT's task
    dictionary = path.parent / f"dict.{labels[0] if isinstance(labels, list) else labels}.txt"
    inside = state.get("target_dictionary") if isinstance(state, dict) else None
    if dictionary.is_file():
        symbols, where = [*SPECIAL, *_read_dictionary(dictionary)], str(dictionary)
    elif isinstance(inside, dict) and isinstance(inside.get("symbols"), list):
        symbols, where = [str(symbol) for symbol in inside["symbols"]], f"the dictionary in {path}"
    else:
        return None
    if tuple(symbols[:4]) != SPECIAL or len(set(symbols)) != len(symbols):
        raise CheckpointError(f"{where} is not valid: expected {' '.join(SPECIAL)} first, and each symbol once")
    if len(symbols) != outputs:
        raise CheckpointError(
            f"{where} has {len(symbols)} symbols with its 4 special ones, but w2v_encoder.proj of {path} has {outputs} "
            "outputs: is it the dictionary of another checkpoint?"
        )
    return (*SPECIAL_THERE, *symbols[4:])


def _read_dictionary(path: Path) -> list[str]:
    """Read the symbols of a dictionary file with lines `symbol count`."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # other line separators may be symbols
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    symbols = []
    for number, line in enumerate(lines, 1):
        symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not count.isdigit():
            raise CheckpointError(f"{path}, line {number}: expected a symbol and its count, found {line!r}")
        symbols.append(symbol)
    return symbols
