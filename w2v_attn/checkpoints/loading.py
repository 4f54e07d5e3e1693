"""Checkpoints: a hub id, a folder, a file or a module of another format -> a stock model, every weight accounted for.

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
from w2v_attn.checkpoints.convert.detect import read
from w2v_attn.checkpoints.convert.parts import Parts, make_config, make_model
from w2v_attn.checkpoints.errors import CheckpointError, first_line, shown
from w2v_attn.checkpoints.families import FAMILIES, REFUSED, supported
from w2v_attn.checkpoints.hub import locate
from w2v_attn.checkpoints.processor_files import copy_companions, write_companions
from w2v_attn.checkpoints.tokenizers import target_language
from w2v_attn.dtypes import DTYPES

logger = logging.getLogger(__name__)

# What stands beside the encoder in checkpoints of these families: heads, quantisers, objectives.
HEADS = frozenset(
    "lm_head quantizer project_hid project_q classifier projector layer_weights tdnn feature_extractor objective "
    "ctc_proj label_embeddings_concat speaker_proj final_proj label_embs_concat layer_norm_for_extract "
    "pooled_score pooled_classifier".split()
)
# Only training uses it, and some checkpoints are saved without: stock transformers draws it anew in silence.
OPTIONAL = frozenset({"masked_spec_embed"})


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    model: the stock transformers model, in evaluation mode.
    source: hub id or path, as given. folder: where its config files are.
    missing: parameters of the model that the checkpoint has not; only ones that extraction never reads.
    unexpected: weights of the checkpoint that the model has no place for; only heads.
    sample_rate: Hz. do_normalize: whether the input is brought to mean 0 and variance 1.
    normalize_from: where that is known from, in words.
    filter_banks: the extractor of what the model reads where that is no waveform, of transformers.
    format: what it was read from, in words. kept: the folder, where it was made for this checkpoint and goes with it.
    language: whose adapters the weights hold, as far as that is known; None also where there are no adapters.
    """

    model: Any
    source: str
    folder: Path
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sample_rate: int
    do_normalize: bool
    normalize_from: str
    filter_banks: Any = None
    format: str = "Hugging Face's"
    kept: "tempfile.TemporaryDirectory[str] | None" = None
    language: str | None = None


def load_checkpoint(
    checkpoint: str | os.PathLike[str] | nn.Module,
    *,
    revision: str | None = None,
    language: str | None = None,
    dtype: str = "float32",
    with_head: bool = False,
) -> Checkpoint:
    """The model of a checkpoint, in the memory of the CPU.

    checkpoint: a hub id (`facebook/wav2vec2-base`) or a folder with config.json and weights: safetensors or bin, in one
        file or in shards, with old or new names of the weight norm, with or without a head. Or fairseq's `.pt` of
        wav2vec 2.0 or HuBERT, pre-trained or fine-tuned with CTC. Or torchaudio's: a file with a state dict, a folder
        of `save_copy(…, format="torchaudio")`, or a live module.
    revision: branch, tag or commit, for hub ids.
    language: whose adapters are put in, for checkpoints that have them (MMS); None: those that its weights hold.
    dtype: "float32", "float64", "bfloat16" or "float16".
    with_head: load the architecture that the config names (a CTC model, a classifier, …), not the encoder alone.

    Raises:
        CheckpointError: there is no such checkpoint, it is of another family, it is damaged, a pickle in it holds more
            than tensors, or weights are missing, mis-shaped or left over; or there is no adapter of the language.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    parts = read(checkpoint)
    if parts is not None:
        if language is not None:
            raise CheckpointError(
                f"{parts.source} is in {parts.format} format, which has no adapters in files for languages: leave "
                f"model.language out, or name an MMS checkpoint of Hugging Face's format such as {EXAMPLE_ID}"
            )
        return _assemble(parts, DTYPES[dtype], with_head)
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
    filter_banks = _read_filter_banks(folder) if config.model_type == "wav2vec2-bert" else None
    if filter_banks is None:
        sample_rate, do_normalize, normalize_from = _read_preprocessor(folder)
    else:
        sample_rate, do_normalize, normalize_from = filter_banks.sampling_rate, True, "the family: each filter's own"
    return Checkpoint(
        model.eval(),
        source,
        folder,
        missing,
        unexpected,
        sample_rate,
        do_normalize,
        normalize_from,
        filter_banks,
        language=language,
    )


def _assemble(parts: Parts, dtype: torch.dtype, with_head: bool) -> Checkpoint:
    """A checkpoint of another format as Hugging Face's, with the files of its folder made anew."""
    if parts.config.get("model_type") not in FAMILIES:
        raise CheckpointError(
            f"{parts.source} is of the family “{parts.config.get('model_type')}”, which is not supported. "
            f"Supported are: {supported()}"
        )
    config = make_config(parts)
    model_class = _model_class(config, with_head)
    logger.info("converting %s to %s", parts.source, model_class.__name__)
    model, missing, unexpected = make_model(parts, model_class, config, dtype)
    kept = tempfile.TemporaryDirectory(prefix="w2v-attn-")
    folder = Path(kept.name)
    if parts.folder is not None:
        copy_companions(parts.folder, folder)
    from_beside = (folder / "preprocessor_config.json").is_file()
    write_companions(parts, config, folder)
    sample_rate, do_normalize, normalize_from = _read_preprocessor(folder)
    return Checkpoint(
        model.eval(),
        parts.source,
        folder,
        missing,
        unexpected,
        sample_rate,
        do_normalize,
        normalize_from if from_beside else parts.normalize_from,
        format=parts.format,
        kept=kept,
    )


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    try:
        raw, _ = PretrainedConfig.get_config_dict(str(folder))
    except Exception as error:  # it may hold any JSON at all
        raise CheckpointError(f"the config.json of {folder} cannot be read: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"the config.json of {folder} is not valid: expected an object, found {type(raw).__name__}"
        )
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        named = f"of the family “{family}”" if family else "without a model_type in its config.json"
        reason = REFUSED.get(family) if isinstance(family, str) else None
        because = "" if reason is None else f": {reason}"
        raise CheckpointError(
            f"{folder} is a checkpoint {named}, which is not supported{because}. Supported are: {supported()}"
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
            ignore_mismatched_sizes=True,  # so that all of them are listed below, not only the first
            weights_only=True,
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{folder} was refused: its weights are a pickle that is damaged or holds more than tensors, which could "
            "run code when loaded. Nothing of it was run. Ask for a safetensors file of this checkpoint"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"the safetensors of {folder} are damaged or cut short ({first_line(error)}). Fetch the file again"
        ) from error
    except Exception as error:  # sizes of 0, quantisation without its library, shards that are gone, …
        raise CheckpointError(f"the weights of {folder} cannot be loaded: {first_line(error)}") from error


def _check_keys(
    source: str, report: dict[str, Any], prefix: str, has_head: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(missing, unexpected) that are harmless; raises where one is not."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(report["mismatched_keys"], key=str)
    wrong = [f"missing: {key}" for key in missing if key.split(".")[-1] not in OPTIONAL]
    wrong += [f"of shape {list(found)} instead of {list(wanted)}: {key}" for key, found, wanted in mismatched]
    for key in unexpected:
        in_encoder = key.startswith(f"{prefix}.")
        part = key.removeprefix(f"{prefix}.").split(".")[0]
        if part in OPTIONAL or (not in_encoder and not has_head and part in HEADS):
            continue
        wrong.append(f"left over: {key}")
    if wrong:
        raise CheckpointError(
            f"the weights of {source} are not those that its config.json describes:\n  {shown(wrong)}\n"
            "Is config.json from another checkpoint, or were the weights saved in part?"
        )
    return tuple(missing), tuple(unexpected)


def has_preprocessor(folder: Path) -> bool:
    """Whether a checkpoint says how its input is prepared."""
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


def _read_filter_banks(folder: Path) -> Any:
    """The extractor of filter banks, with what the preprocessor config says of it where there is one."""
    from transformers import SeamlessM4TFeatureExtractor

    if not has_preprocessor(folder):
        return SeamlessM4TFeatureExtractor()
    try:
        extractor = SeamlessM4TFeatureExtractor.from_pretrained(str(folder))
        valid = extractor.sampling_rate == 16_000 and extractor.stride > 0 and extractor.num_mel_bins > 0
    except Exception as error:  # any JSON value may stand where a number is expected
        raise CheckpointError(f"the preprocessor config of {folder} is not valid: {first_line(error)}") from error
    if not valid:
        raise CheckpointError(
            f"the preprocessor config of {folder} is not valid: expected filters at 16000 Hz and a stride above 0, "
            f"found {extractor.num_mel_bins!r} at {extractor.sampling_rate!r} Hz and {extractor.stride!r}"
        )
    return extractor


def _read_preprocessor(folder: Path) -> tuple[int, bool, str]:
    """(sample rate, do_normalize, where that is known from)."""
    from transformers import Wav2Vec2FeatureExtractor

    if not has_preprocessor(folder):
        return 16_000, True, "the family's default: there is no preprocessor config"
    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(folder))
    except Exception as error:  # any JSON value may stand where a number is expected
        raise CheckpointError(f"the preprocessor config of {folder} is not valid: {first_line(error)}") from error
    rate, normalize = extractor.sampling_rate, extractor.do_normalize
    if not isinstance(rate, int) or not 1000 <= rate <= 384_000 or not isinstance(normalize, bool):
        raise CheckpointError(
            f"the preprocessor config of {folder} is not valid: expected sampling_rate in Hz and do_normalize true or "
            f"false, found {rate!r} and {normalize!r}"
        )
    return rate, normalize, "the preprocessor config"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While open, transformers shows no bars and tables: what they say is returned here, or raised."""
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
