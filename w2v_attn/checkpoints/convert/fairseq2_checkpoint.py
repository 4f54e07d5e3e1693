"""fairseq2 checkpoints of wav2vec 2.0 (Omnilingual ASR), pre-trained or with a CTC head, in Hugging Face's terms.

They become transformers' OmniASR classes, whose positional convolution has its weight norm multiplied in, or Wav2Vec2
classes, which also have the heads of pre-training. Both compute the same function.

Source: fairseq2, models/wav2vec2/ (model.py, frontend.py, interop.py, vector_quantizer.py) and models/wav2vec2/asr/,
and omnilingual-asr, models/, for the names of parameters.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.convert.fairseq2_config import POSITION, audio_config, contrast_config, outputs_of_head
from w2v_attn.checkpoints.convert.fairseq2_tokenizer import find_sentencepiece
from w2v_attn.checkpoints.convert.raw_checkpoint import NamePairs, NameTable, RawCheckpoint
from w2v_attn.checkpoints.families import FIRST_VERSIONS, is_installed
from w2v_attn.checkpoints.processor_files import OMNIASR_EPSILON

BLOCK: NamePairs = (
    ("self_attn_layer_norm", "layer_norm"),
    *((f"self_attn.{name}_proj", f"attention.{name}_proj") for name in ("q", "k", "v")),
    ("self_attn.output_proj", "attention.out_proj"),
    ("ffn_layer_norm", "final_layer_norm"),
    ("ffn.inner_proj", "feed_forward.intermediate_dense"),
    ("ffn.output_proj", "feed_forward.output_dense"),
)
FEATURES = "encoder_frontend.feature_extractor.layers.{n}"
OMNIASR: NamePairs = (
    (f"{FEATURES}.conv", "subsampling.conv_layers.{n}.conv"),
    (f"{FEATURES}.layer_norm", "subsampling.conv_layers.{n}.layer_norm"),
    ("encoder_frontend.post_extract_layer_norm", "subsampling.layer_norm"),
    ("encoder_frontend.model_dim_proj", "subsampling.projection"),
    (f"{POSITION}.bias", "encode_positions.conv.bias"),
    *((f"encoder.layers.{{n}}.{theirs}", f"layers.{{n}}.{ours}") for theirs, ours in BLOCK),
    ("encoder.layer_norm", "layer_norm"),
)
WAV2VEC2: NamePairs = (
    (f"{FEATURES}.conv", "feature_extractor.conv_layers.{n}.conv"),
    (f"{FEATURES}.layer_norm", "feature_extractor.conv_layers.{n}.layer_norm"),
    ("encoder_frontend.post_extract_layer_norm", "feature_projection.layer_norm"),
    ("encoder_frontend.model_dim_proj", "feature_projection.projection"),
    (f"{POSITION}.bias", "encoder.pos_conv_embed.conv.bias"),
    *((f"encoder.layers.{{n}}.{theirs}", f"encoder.layers.{{n}}.{ours}") for theirs, ours in BLOCK),
    ("encoder.layer_norm", "encoder.layer_norm"),
    ("masker.temporal_mask_embed", "masked_spec_embed"),
)
CONTRASTIVE: NamePairs = (
    ("quantizer.entries", "quantizer.codevectors"),
    ("quantizer.entry_proj", "quantizer.weight_proj"),
    ("final_target_proj", "project_q"),
    ("final_proj", "project_hid"),
)
# The weight norm of the positional convolution: norm and direction, by their names in fairseq2 and in torch's
# parametrization.
WEIGHT_NORMS = (
    (f"{POSITION}.weight_g", f"{POSITION}.weight_v"),
    (f"{POSITION}.parametrizations.weight.original0", f"{POSITION}.parametrizations.weight.original1"),
)
POSITION_NAMES = frozenset({f"{POSITION}.weight", *WEIGHT_NORMS[0], *WEIGHT_NORMS[1]})
POSITION_OMNIASR = "encode_positions.conv.weight"
POSITION_WAV2VEC2 = "encoder.pos_conv_embed.conv.parametrizations.weight"

FRONTEND = ("encoder_frontend.feature_extractor.", "encoder_frontend.post_extract_layer_norm.")
SHARDS = "pp_*/tp_*/sdp_*.pt"  # in the folder of a checkpoint of fairseq2's recipes
# Modules that an encoder, and a CTC model, do not need: of pre-training and masking, and of the language model.
OBJECTIVE = frozenset("quantizer final_target_proj final_proj masker".split())
LANGUAGE_MODEL = frozenset("llama_decoder encoder_proj text_frontend lang_embeddings".split())

# Training options of transformers' own conversions (OmniASRAudioConfig's defaults), for Wav2Vec2 classes.
DROPOUTS = {
    "attention_dropout": 0.0,
    "hidden_dropout": 0.1,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
    "feat_proj_dropout": 0.0,
    "feat_quantizer_dropout": 0.0,
    "final_dropout": 0.0,
}


def is_fairseq2_checkpoint(found: object) -> bool:
    """Return whether the contents of a `torch.save` file are a wav2vec 2.0 model of fairseq2."""
    return any(name.startswith(FRONTEND) for name in _state(found))


def training_file(folder: Path) -> Path | None:
    """Return the file of the weights in a folder of fairseq2's recipes, `step_…` or `model` in it; None: it is none.

    Raises:
        CheckpointError: The weights are in several shards, or the folder contains those of several steps.
    """
    shards = sorted((*folder.glob(SHARDS), *folder.glob(f"model/{SHARDS}")))
    if len(shards) > 1:
        raise CheckpointError(
            f"the weights in {folder} are in {len(shards)} shards, one for each device, which are not joined here. "
            "Load them in fairseq2 and save them in one file: torch.save(model.state_dict(), FILE)"
        )
    if shards:
        return shards[0]
    steps = [step for step in folder.glob("step_*") if step.name[5:].isdigit() and any(step.glob(f"model/{SHARDS}"))]
    if steps:
        last = max(steps, key=lambda path: int(path.name[5:]))
        raise CheckpointError(
            f"{folder} contains {len(steps)} checkpoints of a training with fairseq2: name one of them, such as {last}"
        )
    return None


def read_fairseq2(path: Path, found: Mapping[str, Any], *, as_wav2vec2: bool = False) -> RawCheckpoint:
    """Convert the fairseq2 checkpoint `found`, the contents of the file `path`.

    Args:
        path: Its file; a SentencePiece model (`*.model`) next to it is the tokenizer of a CTC head.
        found: Its contents.
        as_wav2vec2: Convert to Wav2Vec2 classes instead of OmniASR classes.

    Raises:
        CheckpointError: It is of another architecture or incomplete, the tokenizer does not fit it, or the installed
            transformers lacks the OmniASR classes.
    """
    if not as_wav2vec2:
        _check_transformers(path)
    state = _state(found)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    kind = _kind(tensors)
    config = audio_config(path, tensors)
    if not as_wav2vec2 and config["num_conv_pos_embeddings"] % 2:
        raise CheckpointError(
            f"{path} has an odd kernel of {config['num_conv_pos_embeddings']} frames for positions, which OmniASR "
            "classes do not support: convert it with w2v-attn load … format=wav2vec2 output=FOLDER"
        )
    outputs = outputs_of_head(path, tensors) if kind == "CTC" else None
    if as_wav2vec2:
        heads = contrast_config(path, tensors) if kind == "W2V" else {}
        config = _wav2vec2_config(kind, config | heads, outputs)
    else:
        config = _omniasr_config(config, outputs)
    names = NameTable(_pairs(kind, as_wav2vec2))
    position = _position_weight(path, tensors, as_wav2vec2)
    placed, unneeded, unknown = dict(position), [], []
    for name in state:
        ours = names.ours(name)
        if name in POSITION_NAMES and (position or not as_wav2vec2):
            continue
        if ours is not None and name in tensors:
            placed[ours] = tensors[name]
        elif name.split(".")[0] in OBJECTIVE | LANGUAGE_MODEL:
            unneeded.append(name)
        else:
            unknown.append(name)
    return RawCheckpoint(
        source=str(path),
        format=f"fairseq2 {kind}" + (", its encoder alone" if kind == "LLM" else ""),
        config=config,
        tensors=placed,
        names=names,
        prefix="",
        pretraining_only=_summary(unneeded) if kind == "LLM" else tuple(unneeded),
        unknown=tuple(unknown),
        sample_rate=16_000,
        do_normalize=True,
        normalize_source=f"Omnilingual ASR, epsilon {OMNIASR_EPSILON:g}",
        symbols=None,
        folder=None,
        normalize_epsilon=OMNIASR_EPSILON if as_wav2vec2 else None,
        pieces=None if outputs is None else find_sentencepiece(path, outputs),
    )


def _state(found: object) -> dict[str, Any]:
    """Return the weights in the contents of a file, by names without the prefix of a distributed module."""
    if isinstance(found, dict):
        key = found.get("model_key", "model")
        inside = found.get(key) if isinstance(key, str) else None
        found = inside if isinstance(inside, dict) else found
        return {str(name).removeprefix("module."): value for name, value in found.items()}
    return {}


def _kind(tensors: Mapping[str, Tensor]) -> str:
    modules = {name.split(".")[0] for name in tensors}
    if modules & {"llama_decoder", "encoder_proj", "text_frontend"}:
        return "LLM"
    if modules & {"quantizer", "final_target_proj"}:
        return "W2V"
    return "CTC" if "final_proj" in modules else "encoder"


def _check_transformers(path: Path) -> None:
    """Raise CheckpointError if the installed transformers lacks the OmniASR classes."""
    import transformers

    if not is_installed("omniasr_ctc"):
        raise CheckpointError(
            f"{path} is a checkpoint of Omnilingual ASR, whose classes transformers has from "
            f"{FIRST_VERSIONS['omniasr_ctc']} on, and {transformers.__version__} is installed. Update it, or convert "
            "the file to Wav2Vec2 classes: w2v-attn load model.checkpoint=FILE format=wav2vec2 output=FOLDER"
        )


# ---------------------------------------------------------------------------------------------- config


def _omniasr_config(audio: dict[str, Any], outputs: int | None) -> dict[str, Any]:
    """Return the config of an OmniASR class: with `outputs`, of the CTC model."""
    if outputs is None:
        return {"model_type": "omniasr_audio", "architectures": ["OmniASRAudioModel"], **audio}
    return {
        "model_type": "omniasr_ctc",
        "architectures": ["OmniASRForCTC"],
        "audio_config": {"model_type": "omniasr_audio", **audio},
        "vocab_size": outputs,
        "blank_token_id": 0,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }


def _wav2vec2_config(kind: str, sizes: dict[str, Any], outputs: int | None) -> dict[str, Any]:
    """Return the config of a Wav2Vec2 class."""
    head = {"CTC": "ForCTC", "W2V": "ForPreTraining"}.get(kind, "Model")
    config = {
        "model_type": "wav2vec2",
        "architectures": [f"Wav2Vec2{head}"],
        **sizes,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        **DROPOUTS,
    }
    if outputs is not None:  # CTC's blank is the padding symbol of Wav2Vec2ForCTC; it was trained without masking
        config |= {"vocab_size": outputs, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
        config["apply_spec_augment"] = False
    return config


# ---------------------------------------------------------------------------------------------- weights


def _pairs(kind: str, as_wav2vec2: bool) -> NamePairs:
    """Return the names of a model's parameters in fairseq2 and in Hugging Face.

    `_position_weight` computes the weight of the positional convolution; its names here serve messages alone.
    """
    head: NamePairs = ()
    if kind == "CTC":
        head = (("final_proj", "lm_head" if as_wav2vec2 else "ctc_head"),)
    if not as_wav2vec2:
        return (*OMNIASR, *head, (f"{POSITION}.weight_g", POSITION_OMNIASR))
    norm, direction = WEIGHT_NORMS[0]
    position = ((norm, f"{POSITION_WAV2VEC2}.original0"), (direction, f"{POSITION_WAV2VEC2}.original1"))
    return (*WAV2VEC2, *(CONTRASTIVE if kind == "W2V" else head), *position)


def _position_weight(path: Path, tensors: Mapping[str, Tensor], as_wav2vec2: bool) -> dict[str, Tensor]:
    """Return the weight of the positional convolution: with its weight norm for Wav2Vec2, multiplied for OmniASR.

    Empty if a part of it is missing.
    """
    plain = tensors.get(f"{POSITION}.weight")  # of a model whose weight norm was removed
    for norm_name, direction_name in WEIGHT_NORMS:
        if norm_name in tensors and direction_name in tensors:
            norm, direction = tensors[norm_name], tensors[direction_name]
            if norm.shape != (1, 1, direction.shape[-1]):
                raise CheckpointError(
                    f"the weights of {path} do not match each other:\n  of shape {list(norm.shape)} instead of "
                    f"{[1, 1, direction.shape[-1]]}: {norm_name}"
                )
            break
    else:
        if plain is None:
            return {}
        norm, direction = torch.linalg.vector_norm(plain.float(), dim=(0, 1), keepdim=True), plain
    if as_wav2vec2:
        return {f"{POSITION_WAV2VEC2}.original0": norm, f"{POSITION_WAV2VEC2}.original1": direction}
    if plain is None:  # at least in float32; it is rounded to the dtype of the model afterwards
        dtype = torch.promote_types(direction.dtype, torch.float32)
        plain = torch.ops.aten._weight_norm(direction.to(dtype), norm.to(dtype), 2)
    return {POSITION_OMNIASR: plain}


def _summary(names: list[str]) -> tuple[str, ...]:
    """Return the modules of these names with the number of their tensors."""
    return tuple(f"{module} ({count} tensors)" for module, count in Counter(n.split(".")[0] for n in names).items())
