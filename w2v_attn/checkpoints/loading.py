"""Load a hub id, folder, file or module as a Hugging Face model with every weight accounted for.

Nothing from a checkpoint is ever executed: weights are read as tensors, configs as plain values.
"""

import logging
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2v_attn.checkpoints.adapters import EXAMPLE_ID, find_adapter, has_adapters, load_adapter
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line, list_lines
from w2v_attn.checkpoints.convert.detect import read_raw_checkpoint
from w2v_attn.checkpoints.convert.raw_checkpoint import RawCheckpoint, make_config, make_model
from w2v_attn.checkpoints.families import FAMILIES, UNSUPPORTED, supported_families
from w2v_attn.checkpoints.hub import locate
from w2v_attn.checkpoints.processor_files import (
    copy_processor_files,
    read_filter_banks,
    read_preprocessor,
    write_processor_files,
)
from w2v_attn.checkpoints.tokenizers import target_language
from w2v_attn.dtypes import DTYPES

logger = logging.getLogger(__name__)

# Modules next to the encoder in checkpoints of these families: heads, quantizers, pre-training objectives.
HEADS = frozenset(
    "lm_head quantizer project_hid project_q classifier projector layer_weights tdnn feature_extractor objective "
    "ctc_proj label_embeddings_concat speaker_proj final_proj label_embs_concat layer_norm_for_extract "
    "pooled_score pooled_classifier".split()
)
# Used in training only. Some checkpoints lack it, and transformers then initializes it at random without a message.
OPTIONAL = frozenset({"masked_spec_embed"})


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: The Hugging Face model, in evaluation mode.
        source: Hub id or path, as given.
        folder: The folder of its config files.
        missing: Parameters of the model that the checkpoint lacks; only ones that extraction never reads.
        unexpected: Weights of the checkpoint that the model lacks; only heads.
        sample_rate: Hz.
        do_normalize: Whether the input is normalized to mean 0 and variance 1.
        normalize_source: Where `do_normalize` is known from, for people.
        filter_banks: The transformers feature extractor of models that read filter banks; None for waveforms.
        format: The format of the checkpoint, for people.
        temporary_folder: `folder`, if it was created for this checkpoint; it is deleted together with this object.
        language: The language of the adapters in the weights; None if there are no adapters or it is unknown.
    """

    model: Any
    source: str
    folder: Path
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sample_rate: int
    do_normalize: bool
    normalize_source: str
    filter_banks: Any = None
    format: str = "Hugging Face"
    temporary_folder: "tempfile.TemporaryDirectory[str] | None" = None
    language: str | None = None


def load_checkpoint(
    checkpoint: str | os.PathLike[str] | nn.Module,
    *,
    revision: str | None = None,
    language: str | None = None,
    dtype: str = "float32",
    with_head: bool = False,
) -> Checkpoint:
    """Load a checkpoint into CPU memory.

    Args:
        checkpoint: A hub id (`facebook/wav2vec2-base`) or a folder with config.json and weights: safetensors or bin, in
            one file or in shards, with old or new names of the weight norm, with or without a head. Or a fairseq `.pt`
            file of wav2vec 2.0 or HuBERT, pre-trained or fine-tuned with CTC. Or, of torchaudio, a file with a state
            dict, a folder written by `export_checkpoint(…, format="torchaudio")`, or a live module.
        revision: Branch, tag or commit of a hub id.
        language: The language whose adapters are loaded, for checkpoints that have adapters (MMS); None keeps those in
            the weights.
        dtype: "float32", "float64", "bfloat16" or "float16".
        with_head: Load the architecture that the config names (a CTC model, a classifier, …) instead of the encoder.

    Raises:
        CheckpointError: The checkpoint does not exist, its family is not supported, it is damaged, a pickle in it
            contains more than tensors, weights are missing, mis-shaped or unexpected, or the language has no adapter.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    raw = read_raw_checkpoint(checkpoint)
    if raw is not None:
        if language is not None:
            raise CheckpointError(
                f"{raw.source} is in {raw.format} format, which has no adapters for languages: leave model.language "
                f"out, or use an MMS checkpoint in Hugging Face format such as {EXAMPLE_ID}"
            )
        return _assemble(raw, DTYPES[dtype], with_head)
    assert not isinstance(checkpoint, nn.Module)
    source = os.fspath(checkpoint)
    folder = locate(source, revision)
    config = _read_config(folder)
    adapter = None if language is None else find_adapter(source, folder, config, language)
    model_class = _model_class(config, with_head)
    logger.info("loading %s as %s", source, model_class.__name__)
    with quiet_transformers():
        model, report = _read_weights(model_class, config, folder, DTYPES[dtype])
    has_head = hasattr(model, model.base_model_prefix)
    missing, unexpected = _check_keys(source, report, model.base_model_prefix, has_head)
    if adapter is not None:
        load_adapter(model, adapter)
    elif has_adapters(config):
        language = target_language(folder)
    filter_banks = read_filter_banks(folder) if config.model_type == "wav2vec2-bert" else None
    if filter_banks is None:
        sample_rate, do_normalize, normalize_source = read_preprocessor(folder)
    else:
        sample_rate, do_normalize, normalize_source = filter_banks.sampling_rate, True, "the family, per filter"
    return Checkpoint(
        model.eval(),
        source,
        folder,
        missing,
        unexpected,
        sample_rate,
        do_normalize,
        normalize_source,
        filter_banks,
        language=language,
    )


def _assemble(raw: RawCheckpoint, dtype: torch.dtype, with_head: bool) -> Checkpoint:
    """Convert a checkpoint of another format; its config and processor files are written to a temporary folder."""
    if raw.config.get("model_type") not in FAMILIES:
        raise CheckpointError(
            f"{raw.source} is of the family “{raw.config.get('model_type')}”, which is not supported. "
            f"Supported are: {supported_families()}"
        )
    config = make_config(raw)
    model_class = _model_class(config, with_head)
    logger.info("converting %s to %s", raw.source, model_class.__name__)
    model, missing, unexpected = make_model(raw, model_class, config, dtype)
    temporary_folder = tempfile.TemporaryDirectory(prefix="w2v-attn-")
    folder = Path(temporary_folder.name)
    if raw.folder is not None:
        copy_processor_files(raw.folder, folder)
    has_config = (folder / "preprocessor_config.json").is_file()
    write_processor_files(raw, config, folder)
    sample_rate, do_normalize, normalize_source = read_preprocessor(folder)
    return Checkpoint(
        model.eval(),
        raw.source,
        folder,
        missing,
        unexpected,
        sample_rate,
        do_normalize,
        normalize_source if has_config else raw.normalize_source,
        format=raw.format,
        temporary_folder=temporary_folder,
    )


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    try:
        raw, _ = PretrainedConfig.get_config_dict(str(folder))
    except Exception as error:  # it may contain any JSON value
        raise CheckpointError(f"the config.json of {folder} cannot be read: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"the config.json of {folder} is not valid: expected an object, found {type(raw).__name__}"
        )
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        named = f"of the family “{family}”" if family else "without a model_type in its config.json"
        reason = UNSUPPORTED.get(family) if isinstance(family, str) else None
        because = "" if reason is None else f": {reason}"
        raise CheckpointError(
            f"{folder} is a checkpoint {named}, which is not supported{because}. Supported are: {supported_families()}"
        )
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise CheckpointError(f"the config.json of {folder} is not valid: {first_line(error)}") from error


def _model_class(config: Any, with_head: bool) -> Any:
    import transformers

    from w2v_attn.checkpoints.pooled_classifiers import pooled_class

    if with_head:
        names = config.architectures if isinstance(config.architectures, list) else []
        if getattr(config, "pooling", "mean") in ("attention", "statistics"):
            return pooled_class(transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)])  # type: ignore
        for name in names:
            candidate = getattr(transformers, str(name), None)
            if candidate is not None and getattr(candidate, "config_class", None) is type(config):
                return candidate
    return transformers.MODEL_MAPPING[type(config)]


def _read_weights(model_class: Any, config: Any, folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError

    try:
        return model_class.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that all of them are reported below, not only the first
            weights_only=True,
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{folder} was refused: its weights are a pickle that is damaged or contains more than tensors, which "
            "could run code when loaded. Nothing of it was run. Use a safetensors file of this checkpoint"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"the safetensors of {folder} are damaged or cut short ({first_line(error)}). Download the file again"
        ) from error
    except Exception as error:  # sizes of 0, quantization without its library, missing shards, …
        raise CheckpointError(f"the weights of {folder} cannot be loaded: {first_line(error)}") from error


def _check_keys(
    source: str, report: dict[str, Any], prefix: str, has_head: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the harmless (missing, unexpected) keys; raise CheckpointError for any other."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(report["mismatched_keys"], key=str)
    wrong = [f"missing: {key}" for key in missing if key.split(".")[-1] not in OPTIONAL]
    wrong += [f"of shape {list(found)} instead of {list(wanted)}: {key}" for key, found, wanted in mismatched]
    for key in unexpected:
        in_encoder = key.startswith(f"{prefix}.")
        part = key.removeprefix(f"{prefix}.").split(".")[0]
        if part in OPTIONAL or (not in_encoder and not has_head and part in HEADS):
            continue
        wrong.append(f"unexpected: {key}")
    if wrong:
        raise CheckpointError(
            f"the weights of {source} do not match its config.json:\n  {list_lines(wrong)}\n"
            "Is config.json from another checkpoint, or were the weights saved incompletely?"
        )
    return tuple(missing), tuple(unexpected)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress the progress bars and tables of transformers: this package returns or raises what they report."""
    from transformers.utils import logging as library

    level, had_bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if had_bar:
            library.enable_progress_bar()
