"""Checkpoints in Hugging Face form: a hub id or a folder -> a stock model with every weight accounted for.

Nothing from a checkpoint is ever executed: weights are read as tensors, configs as plain values.
"""

import logging
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from w2v_attn.pretrained.families import FAMILIES, supported

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What stands beside the encoder in checkpoints of these families: heads, quantisers, objectives.
HEADS = frozenset(
    "lm_head quantizer project_hid project_q classifier projector layer_weights tdnn feature_extractor objective "
    "ctc_proj label_embeddings_concat speaker_proj speaker_model final_proj label_embs_concat dropout".split()
)
# Only training uses it, and some checkpoints are saved without: stock transformers draws it anew in silence.
OPTIONAL = frozenset({"masked_spec_embed"})

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The text says what was expected, what was found, and the way out."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    model: the stock transformers model, in evaluation mode.
    source: hub id or folder, as given. revision: as given.
    missing: parameters of the model that the checkpoint has not; only ones that extraction never reads.
    unexpected: weights of the checkpoint that the model has no place for; only heads.
    sample_rate: Hz. do_normalize: whether the input is brought to mean 0 and variance 1.
    normalize_from: where that is known from, in words.
    """

    model: Any
    source: str
    revision: str | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sample_rate: int
    do_normalize: bool
    normalize_from: str


def load_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str = "float32",
    with_head: bool = False,
) -> Checkpoint:
    """The model of a checkpoint, in the memory of the CPU.

    checkpoint: a hub id (`facebook/wav2vec2-base`) or a folder with config.json and weights: safetensors or bin, in one
        file or in shards, with old or new names of the weight norm, with or without a head.
    revision: branch, tag or commit, for hub ids.
    dtype: "float32", "float64", "bfloat16" or "float16".
    with_head: load the architecture that the config names (a CTC model, a classifier, …), not the encoder alone.

    Raises:
        CheckpointError: there is no such checkpoint, it is of another family, it is damaged, a pickle in it holds more
            than tensors, or weights are missing, mis-shaped or left over.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    source = _locate(checkpoint)
    config = _read_config(source, revision)
    model_class = _model_class(config, with_head)
    logger.info("loading %s as %s", source, model_class.__name__)
    model, report = _read_weights(model_class, config, source, revision, DTYPES[dtype])
    missing, unexpected = _check_keys(source, report, model.base_model_prefix, with_head)
    sample_rate, do_normalize, normalize_from = _read_preprocessor(source, revision)
    return Checkpoint(
        model.eval(), source, revision, missing, unexpected, sample_rate, do_normalize, normalize_from
    )


def _locate(checkpoint: str | os.PathLike[str]) -> str:
    """A folder that is there, or what can only be a hub id."""
    source = os.fspath(checkpoint)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise CheckpointError(
                f"{source} is a folder without config.json (it holds: {found}). Expected a Hugging Face checkpoint: "
                f"config.json and one of {', '.join(WEIGHT_FILES)}"
            )
        if not any((path / name).is_file() for name in WEIGHT_FILES):
            raise CheckpointError(f"{source} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")
        return str(path)
    if path.is_file():
        raise CheckpointError(
            f"{source} is a file. Expected a Hugging Face checkpoint: a folder with config.json and weights, or a hub id"
        )
    parts = source.split("/")
    if not source or len(parts) > 2 or source[0] in "./~\\" or any(p in ("", ".", "..") for p in parts):
        raise CheckpointError(f"there is no folder {source}. Give a folder that exists, or a hub id such as {EXAMPLE_ID}")
    return source


EXAMPLE_ID = "facebook/wav2vec2-base"


def _read_config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    try:
        raw, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise CheckpointError(f"the config.json of {source} cannot be read: {_first_line(error)}") from error
        raise CheckpointError(_unreachable(source, error)) from error
    family = raw.get("model_type")
    if family not in FAMILIES:
        named = f"of the family “{family}”" if family else "without a model_type in its config.json"
        raise CheckpointError(
            f"{source} is a checkpoint {named}, which is not supported. Supported are: {supported()}"
        )
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # config classes validate their fields with exceptions of many kinds
        raise CheckpointError(f"the config.json of {source} is not valid: {_first_line(error)}") from error


def _unreachable(source: str, error: Exception) -> str:
    return (
        f"{source} is neither a folder here nor in the cache, and it could not be fetched from the hub "
        f"({_first_line(error)}). Check the name and the network; or put the checkpoint's files into a folder and name "
        "that: model=local model.checkpoint=/path/to/folder"
    )


def _model_class(config: Any, with_head: bool) -> Any:
    import transformers
    from transformers import AutoModel

    if with_head:
        for name in config.architectures or ():
            candidate = getattr(transformers, name, None)
            if candidate is not None and getattr(candidate, "config_class", None) is type(config):
                return candidate
    return AutoModel._model_mapping[type(config)]


def _read_weights(
    model_class: Any, config: Any, source: str, revision: str | None, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError

    try:
        return model_class.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that all of them are listed below, not only the first
            weights_only=True,
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{source} was refused: its weights are a pickle that holds more than tensors, which could run code when "
            "loaded. Nothing of it was run. Ask for a safetensors file of this checkpoint"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"the safetensors of {source} are damaged or cut short ({_first_line(error)}). Fetch the file again"
        ) from error
    except (OSError, EOFError, KeyError, ValueError, RuntimeError) as error:
        if not Path(source).is_dir() and isinstance(error, OSError):
            raise CheckpointError(_unreachable(source, error)) from error
        raise CheckpointError(f"the weights of {source} cannot be read: {_first_line(error)}") from error


def _check_keys(
    source: str, report: dict[str, Any], prefix: str, with_head: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(missing, unexpected) that are harmless; raises where one is not."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(report["mismatched_keys"], key=str)
    wrong = [f"missing: {key}" for key in missing if key.split(".")[-1] not in OPTIONAL]
    wrong += [f"of shape {list(found)} instead of {list(wanted)}: {key}" for key, found, wanted in mismatched]
    for key in unexpected:
        first = key.removeprefix(f"{prefix}.").split(".")[0]
        in_encoder = key.startswith(f"{prefix}.")
        if first in OPTIONAL or (not in_encoder and not with_head and first in HEADS):
            continue
        wrong.append(f"left over: {key}")
    if wrong:
        shown = "\n  ".join(wrong[:20]) + (f"\n  … and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise CheckpointError(
            f"the weights of {source} are not those that its config.json describes:\n  {shown}\n"
            "Is config.json from another checkpoint, or were the weights saved in part?"
        )
    return tuple(missing), tuple(unexpected)


def _read_preprocessor(source: str, revision: str | None) -> tuple[int, bool, str]:
    """(sample rate, do_normalize, where that is known from)."""
    from transformers import Wav2Vec2FeatureExtractor

    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(source, revision=revision)
        where = "its preprocessor config"
    except (OSError, ValueError, TypeError) as error:
        logger.info("%s has no preprocessor config: %s", source, error)
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
        where = "the family's default; it has no preprocessor config"
    return int(extractor.sampling_rate), bool(extractor.do_normalize), where


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
