"""Load a hub id, folder, file or module as a Hugging Face model with every weight accounted for.

Nothing from a checkpoint is ever executed: weights are read as tensors, configs as plain values.
"""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2v_attn.checkpoints.adapters import EXAMPLE_ID, find_adapter, has_adapters, load_adapter
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.convert.detect import read_raw_checkpoint
from w2v_attn.checkpoints.convert.raw_checkpoint import RawCheckpoint, make_config, make_model
from w2v_attn.checkpoints.dense_head import dense_class_of, has_dense_head
from w2v_attn.checkpoints.families import FAMILIES, supported_families
from w2v_attn.checkpoints.hub import locate
from w2v_attn.checkpoints.huggingface_folder import CPU, check_keys, model_class_of, read_config, read_weights
from w2v_attn.checkpoints.peft_adapters import (
    PeftAdapter,
    adapted_class,
    fit_head,
    is_complete,
    is_peft_folder,
    merge_peft_adapter,
    read_peft_adapter,
    without_replaced,
    without_replaced_heads,
)
from w2v_attn.checkpoints.processor_files import (
    WAV2VEC2_EPSILON,
    Preprocessor,
    combine_processor_files,
    copy_processor_files,
    read_filter_banks,
    read_preprocessor,
    write_processor_files,
)
from w2v_attn.checkpoints.tokenizers import target_language
from w2v_attn.checkpoints.unusable_files import CONFIG, PEFT_CONFIG, single_file
from w2v_attn.dtypes import DTYPES

logger = logging.getLogger(__name__)


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
        normalize_epsilon: What is added to the variance then.
        normalize_source: Where `do_normalize` is known from, for people.
        filter_banks: The transformers feature extractor of models that read filter banks; None for waveforms.
        format: The format of the checkpoint, for people.
        temporary_folder: `folder`, if it was created for this checkpoint; it is deleted together with this object.
        language: The language of the adapters in the weights; None if there are no adapters or it is unknown.
        base_model: The base model that a PEFT adapter was merged into; None: it is no adapter.
    """

    model: Any
    source: str
    folder: Path
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sample_rate: int
    do_normalize: bool
    normalize_epsilon: float
    normalize_source: str
    filter_banks: Any = None
    format: str = "Hugging Face"
    temporary_folder: "tempfile.TemporaryDirectory[str] | None" = None
    language: str | None = None
    base_model: str | None = None


def load_checkpoint(
    checkpoint: str | os.PathLike[str] | nn.Module,
    *,
    revision: str | None = None,
    language: str | None = None,
    base_model: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    with_head: bool = False,
    as_wav2vec2: bool = False,
    device: torch.device = CPU,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        checkpoint: A hub id (`facebook/wav2vec2-base`) or a folder with config.json and weights: safetensors or bin, in
            one file or in shards, with old or new names of the weight norm, with or without a head. Or a folder or hub
            id of a PEFT adapter, which is merged into its base model. Or a fairseq `.pt` file of wav2vec 2.0 or HuBERT,
            pre-trained or fine-tuned with CTC. Or a fairseq2 `.pt` file of Omnilingual ASR. Or, of torchaudio, a file
            with a state dict, a folder written by `export_checkpoint(…, format="torchaudio")`, or a live module.
        revision: Branch, tag or commit of a hub id.
        language: The language whose adapters are loaded, for checkpoints that have adapters (MMS); None keeps those in
            the weights.
        base_model: The base model of a PEFT adapter: whatever `checkpoint` may be; None: the one that the adapter's
            config names.
        dtype: "float32", "float64", "bfloat16" or "float16".
        with_head: Load the architecture that the config names (a CTC model, a classifier, …) instead of the encoder.
        as_wav2vec2: Load a fairseq2 file of Omnilingual ASR as Wav2Vec2 classes, with its pre-training heads, instead
            of OmniASR classes.
        device: Where the safetensors of a Hugging Face folder are read to, one by one; other checkpoints are loaded
            into CPU memory.

    Raises:
        CheckpointError: The checkpoint does not exist, its family is not supported, it is damaged, a pickle in it
            contains more than tensors, weights are missing, mis-shaped or unexpected, the language has no adapter, or
            the base model of a PEFT adapter cannot be found or does not fit.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    raw = read_raw_checkpoint(checkpoint, as_wav2vec2=as_wav2vec2)
    folder = None
    if raw is None and not isinstance(checkpoint, nn.Module):
        folder = locate(checkpoint, revision)
        if single_file(folder) is not None:  # a hub id of a fairseq2 file
            raw = read_raw_checkpoint(folder, as_wav2vec2=as_wav2vec2)
    if as_wav2vec2 and (raw is None or not raw.format.startswith("fairseq2")):
        raise CheckpointError(
            f"{checkpoint} is not converted to Wav2Vec2 classes: expected a fairseq2 file of Omnilingual ASR (.pt)"
        )
    if raw is not None:
        _check_no_base(base_model, raw.source)
        return _convert(raw, language, dtype, with_head)
    assert folder is not None
    assert not isinstance(checkpoint, nn.Module)
    source = os.fspath(checkpoint)
    if is_peft_folder(folder):
        return _merge(source, folder, language=language, base_model=base_model, dtype=dtype, with_head=with_head)
    _check_no_base(base_model, source)
    return _load(source, folder, language=language, dtype=dtype, with_head=with_head, device=device)


def _check_no_base(base_model: Any, source: str) -> None:
    """Raise CheckpointError if a base model is named for a checkpoint that is no adapter."""
    if base_model is not None:
        raise CheckpointError(
            f"model.base_model={base_model} is the base of a PEFT adapter, and {source} is no adapter: leave it out"
        )


def _load(
    source: str,
    folder: Path,
    *,
    language: str | None,
    dtype: str,
    with_head: bool,
    adapters: Sequence[PeftAdapter] = (),
    device: torch.device = CPU,
) -> Checkpoint:
    """Load a Hugging Face folder; with PEFT adapters, the model that they were trained on, none of them merged yet.

    adapters: From the outermost, which is merged last, to the first one.
    """
    own = (adapter.folder for adapter in adapters if (adapter.folder / CONFIG).is_file())  # has the labels of its head
    config = read_config(next(own, folder))
    language_file = None if language is None else find_adapter(source, folder, config, language)
    model_class = stock = model_class_of(config, with_head)
    if adapters and with_head:
        classes = (adapted_class(adapter, config, stock) for adapter in adapters)
        model_class = next((found for found in classes if found is not stock), stock)
        for adapter in reversed(adapters):
            fit_head(adapter, config, model_class)
    logger.info("loading %s as %s", source, model_class.__name__)
    model, report = read_weights(model_class, config, folder, DTYPES[dtype], device)
    if with_head and not adapters and has_dense_head(report["unexpected_keys"]):
        model_class = stock = dense_class_of(config)
        model, report = read_weights(model_class, config, folder, DTYPES[dtype], device)
    if adapters:
        report = without_replaced(adapters, report, model)
    # An adapter's model may have another head than its base, whose own head is then left over.
    has_head = hasattr(model, model.base_model_prefix) and model_class is stock
    missing, unexpected = check_keys(source, report, model.base_model_prefix, has_head)
    if language_file is not None:
        load_adapter(model, language_file)
    elif has_adapters(config):
        language = target_language(folder)
    return _with_preprocessor(
        Checkpoint(
            model.eval(), source, folder, missing, unexpected, 16_000, True, WAV2VEC2_EPSILON, "", language=language
        )
    )


def _with_preprocessor(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the input that the preprocessor config in its folder describes."""
    folder = checkpoint.folder
    if checkpoint.model.config.model_type == "wav2vec2-bert":
        banks = read_filter_banks(folder)
        found = Preprocessor(banks.sampling_rate, True, WAV2VEC2_EPSILON, "the family, per filter")
    else:
        banks, found = None, read_preprocessor(folder, checkpoint.model.config.model_type)
    return dataclasses.replace(
        checkpoint,
        sample_rate=found.sample_rate,
        do_normalize=found.do_normalize,
        normalize_epsilon=found.epsilon,
        normalize_source=found.source,
        filter_banks=banks,
    )


def _merge(
    source: str,
    folder: Path,
    *,
    language: str | None,
    base_model: Any,
    dtype: str,
    with_head: bool,
    outer: tuple[PeftAdapter, ...] = (),
) -> Checkpoint:
    """Load the base model of a PEFT adapter and merge the adapter into it, in float32.

    outer: Adapters that are merged into the result afterwards, the last one first: heads may be theirs.
    """
    adapter = read_peft_adapter(folder)
    base, named = _load_base(source, (*outer, adapter), base_model, language, with_head)
    adapter = without_replaced_heads(adapter, outer)
    model = merge_peft_adapter(adapter, base.model, base.model.base_model_prefix).to(DTYPES[dtype]).eval()
    logger.info("merged the adapter %s into %s", source, named)
    temporary_folder = tempfile.TemporaryDirectory(prefix="w2v-attn-")
    combined = Path(temporary_folder.name)
    combine_processor_files(folder, base.folder, combined)
    merged = dataclasses.replace(
        base,
        model=model,
        source=source,
        folder=combined,
        format=f"PEFT adapter ({adapter.kind})",
        temporary_folder=temporary_folder,
        base_model=named,
    )
    return _with_preprocessor(merged)


def _load_base(
    source: str, adapters: tuple[PeftAdapter, ...], base_model: Any, language: str | None, with_head: bool
) -> tuple[Checkpoint, str]:
    """Return the base model of the last of these adapters, in float32 and not merged, and its name.

    Raises:
        CheckpointError: It is not known, cannot be found, or is not usable.
    """
    adapter = adapters[-1]
    folder = adapter.folder
    if base_model is None and is_complete(folder):
        logger.warning(
            "%s has both weights and a PEFT adapter: the adapter is merged into the weights beside it, as transformers "
            "does. If those are merged already, move %s away; model.base_model= names another base",
            source, PEFT_CONFIG,
        )  # fmt: skip
        own = _load(source, folder, language=language, dtype="float32", with_head=with_head, adapters=adapters)
        return own, f"the weights in {source}"
    named = adapter.base if base_model is None else os.fspath(base_model)
    if named is None:
        raise CheckpointError(
            f"{source} is a PEFT adapter, and its {PEFT_CONFIG} does not name its base model: name it with "
            "model.base_model=, a folder or a hub id"
        )
    if base_model is None and (folder / named).is_dir() and not os.path.isdir(named):
        named = os.fspath(folder / named)
    revision = adapter.base_revision if base_model is None else None
    try:
        raw = read_raw_checkpoint(named)
        if raw is not None:
            return _convert(raw, language, "float32", with_head), named
        place = locate(named, revision)
        if single_file(place) is not None and (raw := read_raw_checkpoint(place)) is not None:
            return _convert(raw, language, "float32", with_head), named
        options: dict[str, Any] = {"language": language, "dtype": "float32", "with_head": with_head}
        is_above = place.resolve() in {above.folder.resolve() for above in adapters}
        if is_above and not is_complete(place):
            raise CheckpointError("it is the adapter itself")
        if is_peft_folder(place) and not is_above:  # an adapter of a model with an adapter
            return _merge(named, place, base_model=None, outer=adapters, **options), named
        return _load(named, place, adapters=adapters, **options), named
    except CheckpointError as error:
        raise CheckpointError(
            f"the base model of the PEFT adapter {source}, {named}, cannot be used: {error}\n"
            "model.base_model= names another copy of it, a folder or a hub id"
        ) from error


def _convert(raw: RawCheckpoint, language: str | None, dtype: str, with_head: bool) -> Checkpoint:
    """Convert a checkpoint of another format; its config and processor files are written to a temporary folder."""
    if language is not None:
        raise CheckpointError(
            f"{raw.source} is in {raw.format} format, which has no adapters for languages: leave model.language "
            f"out, or use an MMS checkpoint in Hugging Face format such as {EXAMPLE_ID}"
        )
    if raw.config.get("model_type") not in FAMILIES:
        raise CheckpointError(
            f"{raw.source} is of the family “{raw.config.get('model_type')}”, which is not supported. "
            f"Supported are: {supported_families()}"
        )
    config = make_config(raw, with_head=with_head)
    model_class = model_class_of(config, with_head)
    logger.info("converting %s to %s", raw.source, model_class.__name__)
    model, missing, unexpected = make_model(raw, model_class, config, DTYPES[dtype])
    temporary_folder = tempfile.TemporaryDirectory(prefix="w2v-attn-")
    folder = Path(temporary_folder.name)
    if raw.folder is not None:
        copy_processor_files(raw.folder, folder)
    has_config = (folder / "preprocessor_config.json").is_file()
    write_processor_files(raw, config, folder)
    found = read_preprocessor(folder, config.model_type)
    return Checkpoint(
        model.eval(),
        raw.source,
        folder,
        missing,
        unexpected,
        found.sample_rate,
        found.do_normalize,
        found.epsilon,
        found.source if has_config else raw.normalize_source,
        format=raw.format,
        temporary_folder=temporary_folder,
    )
