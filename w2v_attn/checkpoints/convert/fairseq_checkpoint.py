"""fairseq checkpoints of wav2vec 2.0 and HuBERT, pre-trained or fine-tuned with CTC, in Hugging Face's terms.

Source: fairseq, models/wav2vec/wav2vec2.py, models/wav2vec/wav2vec2_asr.py, models/hubert/hubert.py,
models/hubert/hubert_asr.py, for the names of parameters and where a checkpoint keeps its options.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.convert.fairseq_config import contrast_config, encoder_config, read_symbols, tuning_config
from w2v_attn.checkpoints.convert.pickles import read_pickle
from w2v_attn.checkpoints.convert.raw_checkpoint import NamePairs, NameTable, RawCheckpoint

POSITIONS: NamePairs = (
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
)
POSITIONS_WITH_BATCH_NORM: NamePairs = (
    ("encoder.pos_conv.0", "encoder.pos_conv_embed.batch_norm"),
    ("encoder.pos_conv.1", "encoder.pos_conv_embed.conv"),
)
CONVOLUTION_NORMS: Mapping[str, NamePairs] = {
    "group": (("feature_extractor.conv_layers.{n}.2", "feature_extractor.conv_layers.{n}.layer_norm"),),
    "layer": (("feature_extractor.conv_layers.{n}.2.1", "feature_extractor.conv_layers.{n}.layer_norm"),),
}
ENCODER: NamePairs = (
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
CTC: NamePairs = (("w2v_encoder.proj", "lm_head"),)
CONTRASTIVE: NamePairs = (
    ("quantizer.vars", "quantizer.codevectors"),
    ("quantizer.weight_proj", "quantizer.weight_proj"),
    ("project_q", "project_q"),
    ("final_proj", "project_hid"),
)
TUNED_PREFIX = "w2v_encoder.w2v_model."
# Modules that only pre-training uses; an encoder does not need them.
OBJECTIVE = frozenset("quantizer project_q final_proj target_glu label_embs_concat".split())


@dataclass(frozen=True)
class Family:
    """A fairseq model: its Hugging Face family, the prefix of the classes there, and its pre-training heads."""

    model_type: str
    prefix: str
    objective: NamePairs


PRETRAINED = {"wav2vec2": Family("wav2vec2", "Wav2Vec2", CONTRASTIVE), "hubert": Family("hubert", "Hubert", ())}
FINE_TUNED = ("wav2vec_ctc", "hubert_ctc")


def is_fairseq_checkpoint(found: object) -> bool:
    """Return whether the contents of a `torch.save` file are a fairseq checkpoint."""
    return isinstance(found, dict) and isinstance(found.get("model"), dict) and bool(found.keys() & {"cfg", "args"})


def read_fairseq(path: Path, found: dict[str, Any]) -> RawCheckpoint:
    """Convert the fairseq checkpoint `found`, the contents of the file `path`.

    Raises:
        CheckpointError: It is of another model, or its config is incomplete or has no equivalent in Hugging Face.
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
            f"{path} is a “{kind}” model of fairseq, which is not supported. Supported are: "
            f"{', '.join((*PRETRAINED, *FINE_TUNED))}"
        )
    family = PRETRAINED[base]
    config = encoder_config(path, pretrained, family.model_type)
    names = NameTable(_pairs(config, family, tuned=tuning is not None))
    placed, pretraining_only, unknown = _placed(found["model"], names, prefix)
    head, symbols = "Model", None
    if tuning is not None:
        head, config = "ForCTC", config | tuning_config(tuning)
    elif family.objective and all(any(name.startswith(ours) for name in placed) for _, ours in family.objective):
        config |= contrast_config(pretrained)
        if not pretrained.get("target_glu"):  # Hugging Face's pre-training model has no equivalent
            head = "ForPreTraining"
    config["architectures"] = [family.prefix + head]
    if "lm_head.bias" in placed:
        config |= {
            "vocab_size": placed["lm_head.bias"].numel(),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        symbols = read_symbols(path, task, found.get("task_state"), config["vocab_size"])
    return RawCheckpoint(
        source=str(path),
        format=f"fairseq {kind}",
        config=config,
        tensors=placed,
        names=names,
        prefix=prefix,
        pretraining_only=pretraining_only,
        unknown=unknown,
        sample_rate=task.get("sample_rate") or 16_000,
        do_normalize=task.get("normalize") or False,
        normalize_source="fairseq's default" if task.get("normalize") is None else "the task in the checkpoint",
        symbols=symbols,
        folder=None,
    )


# --------------------------------------------------------------------------------------------------- config


def _config(path: Path, found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (options of the model, options of the task) from `cfg`, or from `args` in older checkpoints."""
    config = found.get("cfg") or found.get("args")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} contains no config: expected options under “cfg” or “args”")
    return _sections(config)


def _sections(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (model, task) options of a config with sections, or of an older, flat config."""
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
    """Return the options of the pre-trained model that a checkpoint was fine-tuned from.

    Some checkpoints contain them; others contain only the path of the pre-trained checkpoint.
    """
    inside = model.get("w2v_args")
    if isinstance(inside, dict):
        return _sections(inside)
    named = model.get("w2v_path")
    if not isinstance(named, str):
        raise CheckpointError(
            f"{path} is fine-tuned, but contains neither “w2v_args” nor “w2v_path” of the pre-trained checkpoint"
        )
    for candidate in (Path(named), path.parent / Path(named).name):
        if candidate.is_file() and candidate.resolve() != path.resolve():
            started_from = read_pickle(candidate)
            if not is_fairseq_checkpoint(started_from):
                raise CheckpointError(f"{candidate}, which {path} was fine-tuned from, is not a fairseq checkpoint")
            return _config(candidate, started_from)
    raise CheckpointError(
        f"{path} does not contain the config of its encoder, only the path of the checkpoint it was fine-tuned from, "
        f"{named}. Copy that file next to it, as {path.parent / Path(named).name}"
    )


# ---------------------------------------------------------------------------------------------- weights


def _pairs(config: Mapping[str, Any], family: Family, *, tuned: bool) -> NamePairs:
    positions = POSITIONS_WITH_BATCH_NORM if config.get("conv_pos_batch_norm") else POSITIONS
    norms = CONVOLUTION_NORMS[config["feat_extract_norm"]]
    return (*ENCODER, *positions, *norms, *(CTC if tuned else family.objective))


def _placed(
    weights: Mapping[str, Any], names: NameTable, prefix: str
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Return (tensors by Hugging Face's names, names that only pre-training uses, unknown names)."""
    placed: dict[str, Tensor] = {}
    pretraining_only, unknown = [], []
    for name, tensor in weights.items():
        inside = name.removeprefix(prefix)
        ours = names.ours(inside)
        if not name.startswith(prefix) and ours not in ("lm_head.weight", "lm_head.bias"):
            ours = None
        if ours is not None and isinstance(tensor, Tensor):
            placed[ours] = tensor
        elif inside.split(".")[0] in OBJECTIVE:
            pretraining_only.append(name)
        else:
            unknown.append(name)
    return placed, tuple(pretraining_only), tuple(unknown)
