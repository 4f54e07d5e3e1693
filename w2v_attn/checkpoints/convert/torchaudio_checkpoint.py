"""Conversion between torchaudio's `Wav2Vec2Model`, live or as a state dict, and Hugging Face models.

torchaudio has one model for wav2vec 2.0 and HuBERT. Its state dicts show most sizes. The others are known for the
architectures that torchaudio releases, or are given in a file `arguments.json` next to the state dict, which contains
some or all arguments of `torchaudio.models.wav2vec2_model`.

Source: torchaudio 2.11, models/wav2vec2/model.py and components.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.convert.raw_checkpoint import NamePairs, NameTable, RawCheckpoint
from w2v_attn.checkpoints.convert.torchaudio_arguments import (
    ARGUMENTS,
    POSITION_THERE,
    arguments_from_config,
    arguments_from_weights,
    arguments_of_module,
    config_from_arguments,
    read_arguments,
    read_json,
)

# The files of this format: the state dict and the arguments that build its module. The other two restore the complete
# Hugging Face checkpoint: its config, and the weights that torchaudio's module lacks (the mask embedding, heads other
# than CTC's).
WEIGHTS = "model.pt"  # next to ARGUMENTS
CONFIG_THERE, WEIGHTS_THERE = "huggingface.json", "huggingface.pt"

POSITION = "encoder.pos_conv_embed.conv"
NAMES: NamePairs = (
    ("feature_extractor.conv_layers.{n}.conv", "feature_extractor.conv_layers.{n}.conv"),
    ("feature_extractor.conv_layers.{n}.layer_norm", "feature_extractor.conv_layers.{n}.layer_norm"),
    ("encoder.feature_projection.layer_norm", "feature_projection.layer_norm"),
    ("encoder.feature_projection.projection", "feature_projection.projection"),
    *(
        (f"{POSITION_THERE}.{name}", f"{POSITION}.{name}")
        for name in ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")
    ),
    # The names from before torch had parametrizations; the files that torchaudio released have them.
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

FAMILIES_THERE = ("wav2vec2", "hubert")  # the Hugging Face families that torchaudio's encoder computes


# ------------------------------------------------------------------------------------ from torchaudio's format


def is_torchaudio_state(found: object) -> bool:
    """Return whether the contents of a file are a torchaudio state dict."""
    return (
        isinstance(found, dict)
        and f"{POSITION_THERE}.bias" in found
        and all(isinstance(tensor, Tensor) for tensor in found.values())
    )


def is_torchaudio_folder(folder: Path) -> bool:
    """Return whether a folder was written by `w2v-attn load format=torchaudio`."""
    return (folder / ARGUMENTS).is_file() and (folder / WEIGHTS).is_file()


def is_torchaudio_module(thing: object) -> bool:
    """Return whether an object is a torchaudio wav2vec 2.0 module, or the wrapper that its bundles return."""
    return isinstance(thing, nn.Module) and type(thing).__module__.startswith(
        ("torchaudio.models.wav2vec2", "torchaudio.pipelines._wav2vec2")
    )


def read_torchaudio(path: Path, tensors: Mapping[str, Tensor]) -> RawCheckpoint:
    """Convert the torchaudio state dict `tensors`, the contents of the file `path`.

    Raises:
        CheckpointError: It is of another model, or of an architecture that its shapes do not show.
    """
    folder = path.parent
    given = read_arguments(folder / ARGUMENTS) if (folder / ARGUMENTS).is_file() else {}
    there = read_json(folder / CONFIG_THERE) if (folder / CONFIG_THERE).is_file() else None
    more: dict[str, Tensor] = {}
    if there is not None and (folder / WEIGHTS_THERE).is_file():
        from w2v_attn.checkpoints.convert.pickles import read_pickle

        more = read_pickle(folder / WEIGHTS_THERE)
        if not isinstance(more, dict) or not all(isinstance(tensor, Tensor) for tensor in more.values()):
            raise CheckpointError(f"{folder / WEIGHTS_THERE} is not valid: expected a dictionary of tensors")
    arguments = arguments_from_weights(str(path), tensors, given)
    return _parts(str(path), "torchaudio state dict", tensors, arguments, folder, there=there, more=more)


def read_torchaudio_module(module: nn.Module) -> RawCheckpoint:
    """Convert a live module: a `torchaudio.models.Wav2Vec2Model`, or what `bundle.get_model()` returns.

    Raises:
        CheckpointError: It is another model.
    """
    normalize = getattr(module, "normalize_waveform", None)
    inner: Any = getattr(module, "model", module)
    source = f"the {type(inner).__name__} of torchaudio"
    try:
        arguments = arguments_of_module(inner)
    except (AttributeError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{source} is not a wav2vec 2.0 or HuBERT encoder, or was modified ({first_line(error)}). Expected a "
            "module from a builder in torchaudio.models, such as wav2vec2_base()"
        ) from error
    tensors = {name: tensor.cpu() for name, tensor in inner.state_dict().items()}
    return _parts(source, "torchaudio module", tensors, arguments, None, normalize=normalize)


def _parts(
    source: str,
    format: str,
    tensors: Mapping[str, Tensor],
    arguments: dict[str, Any],
    folder: Path | None,
    *,
    there: dict[str, Any] | None = None,
    more: Mapping[str, Tensor] | None = None,
    normalize: bool | None = None,
) -> RawCheckpoint:
    names = NameTable(NAMES)
    renamed = {name: names.ours(name) for name in tensors}
    placed = {ours: tensors[name] for name, ours in renamed.items() if ours is not None}
    as_bundles = arguments["extractor_mode"] == "layer_norm"
    return RawCheckpoint(
        source=source,
        format=format,
        config=config_from_arguments(arguments) if there is None else there,
        tensors=placed | dict(more or {}),
        names=names,
        prefix="",
        pretraining_only=(),
        unknown=tuple(name for name, ours in renamed.items() if ours is None),
        sample_rate=16_000,
        do_normalize=as_bundles if normalize is None else normalize,
        normalize_source="torchaudio's bundles of this architecture" if normalize is None else "the module",
        symbols=None,
        folder=folder,
    )


# ------------------------------------------------------------------------------------- to torchaudio's format


def write_torchaudio(model: Any, folder: Path) -> None:
    """Write a Hugging Face model in torchaudio's format: its state dict and the arguments that build its module.

    `torchaudio.models.wav2vec2_model(**arguments).load_state_dict(state)` loads them strictly. What torchaudio lacks is
    written to separate files, so that loading the folder with this package restores everything.

    Raises:
        CheckpointError: torchaudio's module does not compute the same function as this model.
    """
    _check_writable(model.config)
    names = NameTable(NAMES)
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    state: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        bare = name.removeprefix(prefix)
        theirs = names.theirs(bare)
        place = (rest, bare) if theirs is None else (state, theirs)
        place[0][place[1]] = tensor.detach().cpu()
    arguments = arguments_from_config(model.config, outputs=len(state["aux.bias"]) if "aux.bias" in state else None)
    torch.save(state, folder / WEIGHTS)
    (folder / ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    there = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    (folder / CONFIG_THERE).write_text(
        json.dumps(there, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8"
    )
    if rest:
        torch.save(rest, folder / WEIGHTS_THERE)


def _check_writable(config: Any) -> None:
    """Raise CheckpointError if torchaudio's module does not support a config."""
    if config.model_type not in FAMILIES_THERE:
        raise CheckpointError(
            f"torchaudio's format does not support the family {config.model_type}: "
            f"expected {' or '.join(FAMILIES_THERE)}"
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
        raise CheckpointError(f"torchaudio's format does not support {', '.join(wrong)}, which this checkpoint has")
