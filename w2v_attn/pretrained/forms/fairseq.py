"""fairseq's checkpoints of wav2vec 2.0 and HuBERT, pre-trained and fine-tuned with CTC -> Hugging Face's parts.

Source: fairseq, models/wav2vec/wav2vec2.py, models/wav2vec/wav2vec2_asr.py, models/hubert/hubert.py,
models/hubert/hubert_asr.py, data/dictionary.py, for the names of parameters and of options and for what they mean.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from w2v_attn.pretrained.errors import CheckpointError
from w2v_attn.pretrained.forms import pickles
from w2v_attn.pretrained.forms.names import Names, Pairs
from w2v_attn.pretrained.forms.parts import Parts

POSITIONS: Pairs = (
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
)
POSITIONS_WITH_BATCH_NORM: Pairs = (
    ("encoder.pos_conv.0", "encoder.pos_conv_embed.batch_norm"),
    ("encoder.pos_conv.1", "encoder.pos_conv_embed.conv"),
)
CONVOLUTION_NORMS: Mapping[str, Pairs] = {
    "group": (("feature_extractor.conv_layers.{n}.2", "feature_extractor.conv_layers.{n}.layer_norm"),),
    "layer": (("feature_extractor.conv_layers.{n}.2.1", "feature_extractor.conv_layers.{n}.layer_norm"),),
}
ENCODER: Pairs = (
    ("feature_extractor.conv_layers.{n}.0", "feature_extractor.conv_layers.{n}.conv"),
    ("layer_norm", "feature_projection.layer_norm"),
    ("post_extract_proj", "feature_projection.projection"),
    ("mask_emb", "masked_spec_embed"),
    *(
        (f"encoder.layers.{{n}}.self_attn.{name}", f"encoder.layers.{{n}}.attention.{name}")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ),
    ("encoder.layers.{n}.self_attn_layer_norm", "encoder.layers.{n}.layer_norm"),
    ("encoder.layers.{n}.fc1", "encoder.layers.{n}.feed_forward.intermediate_dense"),
    ("encoder.layers.{n}.fc2", "encoder.layers.{n}.feed_forward.output_dense"),
    ("encoder.layers.{n}.final_layer_norm", "encoder.layers.{n}.final_layer_norm"),
    ("encoder.layer_norm", "encoder.layer_norm"),
)
CTC: Pairs = (("w2v_encoder.proj", "lm_head"),)
CONTRASTIVE: Pairs = (
    ("quantizer.vars", "quantizer.codevectors"),
    ("quantizer.weight_proj", "quantizer.weight_proj"),
    ("project_q", "project_q"),
    ("final_proj", "project_hid"),
)
TUNED_PREFIX = "w2v_encoder.w2v_model."
# What only pre-training uses. An encoder does without it.
OBJECTIVE = frozenset("quantizer project_q final_proj target_glu label_embs_concat".split())


@dataclass(frozen=True)
class Family:
    """A model of fairseq's: Hugging Face's family, the prefix of its classes there, and its heads of pre-training."""

    model_type: str
    prefix: str
    objective: Pairs


PRETRAINED = {"wav2vec2": Family("wav2vec2", "Wav2Vec2", CONTRASTIVE), "hubert": Family("hubert", "Hubert", ())}
FINE_TUNED = ("wav2vec_ctc", "hubert_ctc")

# Hugging Face's option -> fairseq's, where the value is the same.
OPTIONS = {
    "num_hidden_layers": "encoder_layers",
    "hidden_size": "encoder_embed_dim",
    "intermediate_size": "encoder_ffn_embed_dim",
    "num_attention_heads": "encoder_attention_heads",
    "do_stable_layer_norm": "layer_norm_first",
}
# The same, with fairseq's own default where a checkpoint is older than the option.
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
# Of fine-tuning: these replace what pre-training had.
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
# Options that change the function in a way that Hugging Face's model has no place for -> the values that do not.
PLAIN = {
    "layer_type": (None, "transformer"),
    "pos_conv_depth": (None, 1),
    "crop_seq_to_multiple": (None, 1),
    "quantize_input": (None, False),
}

# fairseq's dictionaries begin with these; CTC's blank is the first. Hugging Face calls the blank <pad>.
SPECIAL, SPECIAL_THERE = ("<s>", "<pad>", "</s>", "<unk>"), ("<pad>", "<s>", "</s>", "<unk>")


def is_one(found: object) -> bool:
    """Whether what a file of torch.save holds is a checkpoint of fairseq's."""
    return isinstance(found, dict) and isinstance(found.get("model"), dict) and bool(found.keys() & {"cfg", "args"})


def read(path: Path, found: dict[str, Any]) -> Parts:
    """The parts of the checkpoint in `path`, which holds `found`.

    Raises:
        CheckpointError: it is of another model, or its config is not all there or cannot be kept.
    """
    model, task = _config(path, found)
    kind = _kind(path, model)
    if kind in FINE_TUNED:
        pretrained, _ = _pretrained_config(path, model)
        tuning, prefix = model, TUNED_PREFIX
        base = _kind(path, pretrained)
    else:
        pretrained, tuning, prefix, base = model, None, "", kind
    if base not in PRETRAINED:
        raise CheckpointError(
            f"{path} is a “{kind}” of fairseq's, which is not supported. Supported are: "
            f"{', '.join((*PRETRAINED, *FINE_TUNED))}"
        )
    family = PRETRAINED[base]
    names = Names(_pairs(path, pretrained, family, tuned=tuning is not None))
    placed, without_place, unknown = _placed(found["model"], names, prefix)
    config = _model_config(path, pretrained, tuning, family, placed)
    symbols = None
    if "lm_head.weight" in placed:
        config |= {"vocab_size": len(placed["lm_head.weight"]), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        symbols = _symbols(path, task, found.get("task_state"), config["vocab_size"])
    return Parts(
        source=str(path),
        form=f"fairseq's {kind}",
        config=config,
        tensors=placed,
        names=names,
        prefix=prefix,
        without_place=without_place,
        unknown=unknown,
        sample_rate=task.get("sample_rate") or 16_000,
        do_normalize=task.get("normalize") or False,
        normalize_from="fairseq's default" if task.get("normalize") is None else "the task in the checkpoint",
        symbols=symbols,
        folder=None,
    )


# --------------------------------------------------------------------------------------------------- config


def _config(path: Path, found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of the model, options of the task) of a checkpoint with `cfg`, or of an older one with `args`."""
    config = found.get("cfg") or found.get("args")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no config: expected options under “cfg” or “args”")
    return _sections(config)


def _sections(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config with sections, or the flat one from before there were any."""
    model, task = config.get("model"), config.get("task")
    if isinstance(model, dict):
        return model, task if isinstance(task, dict) else model
    return config, config


def _kind(path: Path, model: Mapping[str, Any]) -> str:
    kind = model.get("_name") or model.get("arch")
    if not isinstance(kind, str):
        raise CheckpointError(f"{path} does not say which model it is: expected “_name” or “arch” among its options")
    return kind


def _pretrained_config(path: Path, model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the pre-trained model inside a fine-tuned one.

    fairseq kept them in some checkpoints; in others only where the pre-trained checkpoint was.
    """
    inside = model.get("w2v_args")
    if isinstance(inside, dict):
        return _sections(inside)
    named = model.get("w2v_path")
    if not isinstance(named, str):
        raise CheckpointError(
            f"{path} is fine-tuned, but holds neither “w2v_args” nor “w2v_path” of what it started from"
        )
    for candidate in (Path(named), path.parent / Path(named).name):
        if candidate.is_file() and candidate.resolve() != path.resolve():
            started_from = pickles.read(candidate)
            if not is_one(started_from):
                raise CheckpointError(f"{candidate}, which {path} was fine-tuned from, is no checkpoint of fairseq's")
            return _config(candidate, started_from)
    raise CheckpointError(
        f"{path} does not hold the config of its encoder, only the name of the checkpoint it started from, {named}. "
        f"Put that one beside it, as {path.parent / Path(named).name}"
    )


def _model_config(
    path: Path,
    pretrained: Mapping[str, Any],
    tuning: Mapping[str, Any] | None,
    family: Family,
    placed: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The values of Hugging Face's config.

    Masking is kept of fine-tuned checkpoints alone: that of pre-training hides half of everything from the encoder, to
    make its task hard, and nobody trains on with it.
    """
    needed = (*OPTIONS.values(), "conv_feature_layers", "extractor_mode")
    if absent := [name for name in needed if pretrained.get(name) is None]:
        raise CheckpointError(f"the config in {path} does not say {', '.join(absent)}")
    _check_plain(path, pretrained)
    layers = convolutions(pretrained["conv_feature_layers"], path)
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "feat_extract_norm": _norm(path, pretrained),
        "hidden_act": _activation(path, pretrained),
        "conv_dim": [dim for dim, _, _ in layers],
        "conv_kernel": [kernel for _, kernel, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        **{ours: pretrained[theirs] for ours, theirs in OPTIONS.items()},
        **_with_defaults(pretrained, OPTIONS_WITH_DEFAULT),
    }
    head = "Model"
    if family.model_type == "hubert":
        config |= {"feat_proj_layer_norm": True, "conv_pos_batch_norm": bool(pretrained.get("conv_pos_batch_norm"))}
    if tuning is not None:
        config |= {ours: tuning[theirs] for ours, theirs in OPTIONS_OF_TUNING.items() if tuning.get(theirs) is not None}
        head = "ForCTC"
    elif family.objective and all(any(name.startswith(ours) for name in placed) for _, ours in family.objective):
        config |= _with_defaults(pretrained, OPTIONS_OF_CONTRAST) | _code_sizes(pretrained)
        if not pretrained.get("target_glu"):  # Hugging Face's model for pre-training has no place for it
            head = "ForPreTraining"
    config["architectures"] = [family.prefix + head]
    return config


def _with_defaults(options: Mapping[str, Any], table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    return {
        ours: default if options.get(theirs) is None else options[theirs] for ours, (theirs, default) in table.items()
    }


def _code_sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the codebook, where 0 stands for the size of something else."""
    final = options.get("final_dim") or options["encoder_embed_dim"]
    return {"proj_codevector_dim": final, "codevector_dim": options.get("latent_dim") or final}


def _check_plain(path: Path, options: Mapping[str, Any]) -> None:
    for name, plain in PLAIN.items():
        if options.get(name) not in plain:
            raise CheckpointError(
                f"{path} has {name}={options[name]}, for which Hugging Face's model has no place: expected {plain[-1]}"
            )


def _norm(path: Path, options: Mapping[str, Any]) -> str:
    if options["extractor_mode"] not in NORMS:
        raise CheckpointError(f"{path} has extractor_mode={options['extractor_mode']}: expected {' or '.join(NORMS)}")
    return NORMS[options["extractor_mode"]]


def _activation(path: Path, options: Mapping[str, Any]) -> str:
    named = options.get("activation_fn") or "gelu"
    if named not in ACTIVATIONS:
        raise CheckpointError(f"{path} has activation_fn={named}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[named]


def convolutions(text: str, path: Path) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each convolution, from `[(512,10,5)] + [(512,3,2)]*4 + [(512,2,2)]*2`.

    Lists of numbers, their sums and their multiples are read; nothing is evaluated.

    Raises:
        CheckpointError: it holds anything else.
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


# ---------------------------------------------------------------------------------------------- weights


def _pairs(path: Path, options: Mapping[str, Any], family: Family, *, tuned: bool) -> Pairs:
    positions = POSITIONS_WITH_BATCH_NORM if options.get("conv_pos_batch_norm") else POSITIONS
    norms = CONVOLUTION_NORMS[_norm(path, {"extractor_mode": options.get("extractor_mode")})]
    return (*ENCODER, *positions, *norms, *(CTC if tuned else family.objective))


def _placed(
    weights: Mapping[str, Any], names: Names, prefix: str
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """(tensors by Hugging Face's names, names of what only pre-training uses, names of what is not known)."""
    placed: dict[str, Tensor] = {}
    without_place, unknown = [], []
    for name, tensor in weights.items():
        inside = name.removeprefix(prefix)
        ours = names.ours(inside)
        if not name.startswith(prefix) and ours not in ("lm_head.weight", "lm_head.bias"):
            ours = None
        if ours is not None and isinstance(tensor, Tensor):
            placed[ours] = tensor
        elif inside.split(".")[0] in OBJECTIVE:
            without_place.append(name)
        else:
            unknown.append(name)
    return placed, tuple(without_place), tuple(unknown)


# -------------------------------------------------------------------------------------------- vocabulary


def _symbols(path: Path, task: Mapping[str, Any], state: Any, outputs: int) -> tuple[str, ...] | None:
    """The symbols of a CTC head, of the dictionary beside the checkpoint or the one inside it; None: there is none."""
    labels = task.get("labels") or "ltr"  # HuBERT's task has a list of them
    beside = path.parent / f"dict.{labels[0] if isinstance(labels, list) else labels}.txt"
    inside = state.get("target_dictionary") if isinstance(state, dict) else None
    if beside.is_file():
        symbols, where = [*SPECIAL, *_read_dictionary(beside)], str(beside)
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
    """The symbols of lines `symbol count`."""
    symbols = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not count.isdigit():
            raise CheckpointError(f"{path}, line {number}: expected a symbol and its count, found {line!r}")
        symbols.append(symbol)
    return symbols
