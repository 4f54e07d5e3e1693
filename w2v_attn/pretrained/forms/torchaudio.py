"""torchaudio's `Wav2Vec2Model`, live or as a state dict -> parts in Hugging Face's terms; and back.

torchaudio has one model for wav2vec 2.0 and HuBERT. Its state dicts show most sizes; what they do not show is known of
the architectures that torchaudio releases, or stands in `arguments.json` beside the file: arguments of
`torchaudio.models.wav2vec2_model`, all or some of them.

Source: torchaudio 2.11, models/wav2vec2/model.py and components.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.pretrained.errors import CheckpointError, first_line
from w2v_attn.pretrained.forms.names import Names, Pairs
from w2v_attn.pretrained.forms.parts import Parts

# The files of this form: the state dict and how to build its module. The other two bring a checkpoint of Hugging Face's
# back whole: its config, and what torchaudio's module has no place for (the mask embedding, other heads than CTC's).
WEIGHTS, ARGUMENTS = "model.pt", "arguments.json"
CONFIG_THERE, WEIGHTS_THERE = "huggingface.json", "huggingface.pt"

POSITION = "encoder.pos_conv_embed.conv"
POSITION_THERE = "encoder.transformer.pos_conv_embed.conv"
NAMES: Pairs = (
    ("feature_extractor.conv_layers.{n}.conv", "feature_extractor.conv_layers.{n}.conv"),
    ("feature_extractor.conv_layers.{n}.layer_norm", "feature_extractor.conv_layers.{n}.layer_norm"),
    ("encoder.feature_projection.layer_norm", "feature_projection.layer_norm"),
    ("encoder.feature_projection.projection", "feature_projection.projection"),
    *(
        (f"{POSITION_THERE}.{name}", f"{POSITION}.{name}")
        for name in ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")
    ),
    # As torch named them before it had parametrizations; so do the files that torchaudio released.
    (f"{POSITION_THERE}.weight_g", f"{POSITION}.parametrizations.weight.original0"),
    (f"{POSITION_THERE}.weight_v", f"{POSITION}.parametrizations.weight.original1"),
    *(
        (f"encoder.transformer.layers.{{n}}.{name}", f"encoder.layers.{{n}}.{name}")
        for name in (
            *(f"attention.{projection}_proj" for projection in ("q", "k", "v", "out")),
            "layer_norm",
            "feed_forward.intermediate_dense",
            "feed_forward.output_dense",
            "final_layer_norm",
        )
    ),
    ("encoder.transformer.layer_norm", "encoder.layer_norm"),
    ("aux", "lm_head"),
)

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

# What torchaudio releases: (channels, blocks, channels of the feed-forward, norm of the convolutions) -> what no shape
# shows: (heads, whether the layer norm comes first).
RELEASED: Mapping[tuple[Any, ...], tuple[int, bool]] = {
    (768, 12, 3072, "group_norm"): (12, False),  # wav2vec2_base, hubert_base
    (1024, 24, 4096, "group_norm"): (16, False),  # wav2vec2_large
    (1024, 24, 4096, "layer_norm"): (16, True),  # wav2vec2_large_lv60k, wav2vec2_xlsr_300m, hubert_large
    (1280, 48, 5120, "layer_norm"): (16, True),  # hubert_xlarge, wav2vec2_xlsr_1b
    (1920, 48, 7680, "layer_norm"): (16, True),  # wav2vec2_xlsr_2b
}
STRIDES: Mapping[tuple[int, ...], tuple[int, ...]] = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}
# Only training uses them, and no state dict has them: torchaudio's defaults for its base model.
DROPOUTS = {
    "encoder_projection_dropout": 0.1,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_drop": 0.1,
}
FAMILIES_THERE = ("wav2vec2", "hubert")  # of Hugging Face's, those whose encoder is torchaudio's


# ------------------------------------------------------------------------------------ from torchaudio's form


def is_one(found: object) -> bool:
    """Whether what a file holds is a state dict of torchaudio's."""
    return isinstance(found, dict) and f"{POSITION_THERE}.bias" in found


def is_folder(folder: Path) -> bool:
    """Whether a folder is one that `w2v-attn load form=torchaudio` wrote."""
    return (folder / ARGUMENTS).is_file() and (folder / WEIGHTS).is_file()


def is_module(thing: object) -> bool:
    """Whether something is one of torchaudio's wav2vec 2.0 modules, or what its bundles put around one."""
    return isinstance(thing, nn.Module) and type(thing).__module__.startswith(
        ("torchaudio.models.wav2vec2", "torchaudio.pipelines._wav2vec2")
    )


def read(path: Path, tensors: Mapping[str, Tensor]) -> Parts:
    """The parts of the state dict in `path`, which holds `tensors`.

    Raises:
        CheckpointError: it is of another model, or of an architecture that its shapes do not tell.
    """
    folder = path.parent
    given = _given_arguments(folder / ARGUMENTS) if (folder / ARGUMENTS).is_file() else {}
    there = _json(folder / CONFIG_THERE) if (folder / CONFIG_THERE).is_file() else None
    more: dict[str, Tensor] = {}
    if there is not None and (folder / WEIGHTS_THERE).is_file():
        from w2v_attn.pretrained.forms import pickles

        more = pickles.read(folder / WEIGHTS_THERE)
    arguments = _arguments(str(path), tensors, given)
    return _parts(str(path), "a state dict of torchaudio's", tensors, arguments, folder, there=there, more=more)


def read_module(module: nn.Module) -> Parts:
    """The parts of a live module: a `torchaudio.models.Wav2Vec2Model`, or what `bundle.get_model()` gives.

    Raises:
        CheckpointError: it is of another model.
    """
    normalize = getattr(module, "normalize_waveform", None)
    inner: Any = getattr(module, "model", module)
    source = f"the {type(inner).__name__} of torchaudio"
    try:
        arguments = _arguments_of(inner)
    except (AttributeError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{source} is not a wav2vec 2.0 or HuBERT encoder, or no longer ({first_line(error)}). Expected what the "
            "builders in torchaudio.models make, such as wav2vec2_base()"
        ) from error
    tensors = {name: tensor.cpu() for name, tensor in inner.state_dict().items()}
    return _parts(source, "a module of torchaudio's", tensors, arguments, None, normalize=normalize)


def _parts(
    source: str,
    form: str,
    tensors: Mapping[str, Tensor],
    arguments: dict[str, Any],
    folder: Path | None,
    *,
    there: dict[str, Any] | None = None,
    more: Mapping[str, Tensor] | None = None,
    normalize: bool | None = None,
) -> Parts:
    names = Names(NAMES)
    renamed = {name: names.ours(name) for name in tensors}
    placed = {ours: tensors[name] for name, ours in renamed.items() if ours is not None}
    as_bundles = arguments["extractor_mode"] == "layer_norm"
    return Parts(
        source=source,
        form=form,
        config=_config_of(arguments) if there is None else there,
        tensors=placed | dict(more or {}),
        names=names,
        prefix="",
        without_place=(),
        unknown=tuple(name for name, ours in renamed.items() if ours is None),
        sample_rate=16_000,
        do_normalize=as_bundles if normalize is None else normalize,
        normalize_from="what torchaudio's bundles of this architecture do" if normalize is None else "the module",
        symbols=None,
        folder=folder,
    )


def _config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's config. wav2vec 2.0 and HuBERT are one function in torchaudio; it is kept under the first name."""
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


def _arguments(source: str, tensors: Mapping[str, Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of torchaudio's builder that make a module for these tensors."""
    visible = _visible(source, tensors)
    arguments = DROPOUTS | visible | given
    sizes = ("encoder_embed_dim", "encoder_num_layers", "encoder_ff_interm_features", "extractor_mode")
    known = RELEASED.get(tuple(arguments[name] for name in sizes))
    if known is not None:
        arguments = dict(zip(("encoder_num_heads", "encoder_layer_norm_first"), known, strict=True)) | arguments
    shapes = [tensors[name].shape for name in _numbered(tensors, "feature_extractor.conv_layers.{}.conv.weight")]
    kernels = tuple(shape[2] for shape in shapes)
    if "extractor_conv_layer_config" not in given and kernels in STRIDES:
        channels = [shape[0] for shape in shapes]
        arguments["extractor_conv_layer_config"] = list(zip(channels, kernels, STRIDES[kernels], strict=True))
    hidden = {
        "encoder_num_heads": "the number of heads",
        "encoder_layer_norm_first": "whether the layer norm comes first",
        "extractor_conv_layer_config": "the strides of the convolutions",
    }
    if absent := [name for name in hidden if name not in arguments]:
        shown = ", ".join(f"{name}: {arguments[name]}" for name in sizes)
        raise CheckpointError(
            f"{source} has sizes that torchaudio does not release ({shown}; kernels {list(kernels)}), and its weights "
            f"do not show {' and '.join(hidden[name] for name in absent)}. Write into {ARGUMENTS} beside it what they "
            f"are, as arguments of torchaudio.models.wav2vec2_model: {', '.join(absent)}"
        )
    return arguments


def _visible(source: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that shapes and names show."""

    def shape(*names: str) -> torch.Size:
        for name in names:
            if name in tensors:
                return tensors[name].shape
        raise CheckpointError(f"the weights of {source} are not all there:\n  missing: {names[0]}")

    transformer = "encoder.transformer"
    channels, _ = shape("encoder.feature_projection.projection.weight")
    _, each, kernel = shape(f"{POSITION_THERE}.parametrizations.weight.original1", f"{POSITION_THERE}.weight_v")
    wide, _ = shape(f"{transformer}.layers.0.feed_forward.intermediate_dense.weight")
    every = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    return {
        "extractor_mode": "layer_norm" if every else "group_norm",
        "extractor_conv_bias": "feature_extractor.conv_layers.0.conv.bias" in tensors,
        "encoder_embed_dim": channels,
        "encoder_pos_conv_kernel": kernel,
        "encoder_pos_conv_groups": channels // each,
        "encoder_num_layers": len(_numbered(tensors, f"{transformer}.layers.{{}}.final_layer_norm.weight")),
        "encoder_ff_interm_features": wide,
        "aux_num_out": len(tensors["aux.weight"]) if "aux.weight" in tensors else None,
    }


def _numbered(tensors: Mapping[str, Tensor], name: str) -> list[str]:
    """Those of the names with 0, 1, 2, … that are there, up to the first that is not."""
    found: list[str] = []
    while name.format(len(found)) in tensors:
        found.append(name.format(len(found)))
    return found


def _arguments_of(module: Any) -> dict[str, Any]:
    """The arguments of torchaudio's builder that made a module, read off its parts."""
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


def _given_arguments(path: Path) -> dict[str, Any]:
    given = _json(path)
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
    if given.get("extractor_mode", "layer_norm") not in NORMS:
        raise CheckpointError(f"{path} is not valid: extractor_mode must be {' or '.join(NORMS)}")
    return given


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not valid: expected an object, found {type(found).__name__}")
    return found


# ------------------------------------------------------------------------------------- to torchaudio's form


def write(model: Any, folder: Path) -> None:
    """Writes a transformers model as torchaudio's: its state dict, and the arguments that build its module.

    `torchaudio.models.wav2vec2_model(**arguments).load_state_dict(state)` takes them, strictly. What torchaudio has no
    place for stands in files of its own beside them, so that nothing is lost on the way back.

    Raises:
        CheckpointError: torchaudio's module is another function than this model.
    """
    _check_writable(model.config)
    names = Names(NAMES)
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    state: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        bare = name.removeprefix(prefix)
        theirs = names.theirs(bare)
        place = (rest, bare) if theirs is None else (state, theirs)
        place[0][place[1]] = tensor.detach().cpu()
    arguments = _arguments_for(model.config, outputs=len(state["aux.bias"]) if "aux.bias" in state else None)
    torch.save(state, folder / WEIGHTS)
    (folder / ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    there = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    (folder / CONFIG_THERE).write_text(
        json.dumps(there, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8"
    )
    if rest:
        torch.save(rest, folder / WEIGHTS_THERE)


def _check_writable(config: Any) -> None:
    """Raises CheckpointError where torchaudio's module has no place for what a config asks."""
    if config.model_type not in FAMILIES_THERE:
        raise CheckpointError(
            f"torchaudio's form has no place for the family {config.model_type}: expected {' or '.join(FAMILIES_THERE)}"
        )
    asked = {
        "hidden_act": (config.hidden_act, "gelu"),
        "feat_extract_activation": (config.feat_extract_activation, "gelu"),
        "layer_norm_eps": (config.layer_norm_eps, 1e-5),
        "add_adapter": (getattr(config, "add_adapter", False), False),
        "adapter_attn_dim": (getattr(config, "adapter_attn_dim", None), None),
        "feat_proj_layer_norm": (getattr(config, "feat_proj_layer_norm", True), True),
        "conv_pos_batch_norm": (getattr(config, "conv_pos_batch_norm", False), False),
    }
    wrong = [f"{name}={found}" for name, (found, kept) in asked.items() if found != kept]
    if wrong:
        raise CheckpointError(f"torchaudio's form has no place for {', '.join(wrong)} of this checkpoint")


def _arguments_for(config: Any, *, outputs: int | None) -> dict[str, Any]:
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    return {
        "extractor_mode": NORMS_THERE[config.feat_extract_norm],
        "extractor_conv_layer_config": [list(layer) for layer in layers],
        **{theirs: getattr(config, ours) for ours, theirs in OPTIONS.items()},
        "aux_num_out": outputs,
    }
