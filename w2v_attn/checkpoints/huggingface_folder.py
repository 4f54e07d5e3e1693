"""A Hugging Face folder: its config, the class of its model, and its weights with a report of their names.

Nothing of it is executed: weights are read as tensors, configs as plain values.
"""

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line, list_lines
from w2v_attn.checkpoints.encoder_parts import encoder_config
from w2v_attn.checkpoints.families import (
    FAMILIES,
    UNSUPPORTED,
    WITH_LANGUAGE_MODEL,
    is_installed,
    not_installed,
    supported_families,
)
from w2v_attn.checkpoints.unusable_files import PEFT_CONFIG
from w2v_attn.checkpoints.weight_files import open_tensors, safetensors_files, stored_dtype

CPU = torch.device("cpu")

# Modules next to the encoder in checkpoints of these families: heads, quantizers, pre-training objectives.
HEADS = frozenset(
    "lm_head quantizer project_hid project_q classifier projector layer_weights tdnn feature_extractor objective "
    "ctc_proj label_embeddings_concat speaker_proj final_proj label_embs_concat layer_norm_for_extract "
    "pooled_score pooled_classifier ctc_head multi_modal_projector language_model".split()
)
# The encoder inside a larger model of OmniASR, which has a config of its own.
NESTED = r"^(?:model\.)?audio_tower\."
# Used in training only. Some checkpoints lack it, and transformers then initializes it at random without a message.
OPTIONAL = frozenset({"masked_spec_embed"})


def read_config(folder: Path) -> Any:
    """Return the config of a folder. Raises CheckpointError if it is invalid or of an unsupported model."""
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
    if not is_installed(family):
        raise CheckpointError(f"{folder} cannot be loaded: {not_installed(family)}")
    if raw.get("quantization_config"):
        raise CheckpointError(_quantized(folder, raw["quantization_config"]))
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise CheckpointError(f"the config.json of {folder} is not valid: {first_line(error)}") from error


def _quantized(folder: Path, config: Any) -> str:
    """Return why the quantised weights of a folder are not used."""
    found = config if isinstance(config, dict) else {}
    method = str(found.get("quant_method") or "an unknown method")
    bits = next((bits for bits in (4, 8) if found.get(f"load_in_{bits}bit")), found.get("bits"))
    size = "" if bits is None else f", {bits} bit"
    return (
        f"the weights of {folder} are quantised ({method}{size}), which loading does not support: use the checkpoint "
        "that they were made from, with dtype=bfloat16 to save memory. In Python, replace_attention also takes a model "
        "that transformers has loaded quantised"
    )


def model_class_of(config: Any, with_head: bool) -> Any:
    """Return the class of the model that a config names, or of its encoder without a head.

    Of a model with a language model it is always the encoder.
    """
    import transformers

    from w2v_attn.checkpoints.pooled_classifiers import pooled_class

    encoder = transformers.MODEL_MAPPING[type(encoder_config(config))]
    if with_head and config.model_type not in WITH_LANGUAGE_MODEL:
        names = config.architectures if isinstance(config.architectures, list) else []
        if getattr(config, "pooling", "mean") in ("attention", "statistics"):
            return pooled_class(transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)])  # type: ignore
        for name in names:
            candidate = getattr(transformers, str(name), None)
            if candidate is transformers.MODEL_MAPPING[type(config)]:
                return encoder
            if candidate is not None and getattr(candidate, "config_class", None) is type(config):
                return candidate
    return encoder


def read_weights(
    model_class: Any, config: Any, folder: Path, dtype: torch.dtype, device: torch.device = CPU
) -> tuple[Any, dict[str, Any]]:
    """Return a model with the weights of a folder, and transformers' report about their names.

    Args:
        model_class: The class of the model.
        config: Its config.
        folder: The folder.
        dtype: Dtype of the weights.
        device: Where they go. safetensors go there one by one: they are never all in the memory of the host.

    Raises:
        CheckpointError: The weights are damaged, or a pickle that contains more than tensors.
    """
    from safetensors import SafetensorError

    nested = not isinstance(config, model_class.config_class)
    options: dict[str, Any] = {"key_mapping": {NESTED: ""}} if nested else {}
    try:
        files = safetensors_files(folder)
        # Where the weights do not stay, they are mapped as they are stored, and converted on their way.
        loaded = dtype if device.type == "cpu" or not files else stored_dtype(files)
        with quiet_transformers(), _without_peft(folder) as weights:
            model, report = model_class.from_pretrained(
                None if files else str(weights),
                config=encoder_config(config) if nested else config,
                state_dict=open_tensors(files, loaded) if files else None,
                dtype=loaded,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that all of them are reported later, not only the first
                weights_only=True,
                **options,
            )
        model = model if device.type == "cpu" else model.to(device=device, dtype=dtype)
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
    if nested:  # names of parts beside the encoder
        report["unexpected_keys"] = {key.removeprefix("model.") for key in report["unexpected_keys"]}
    return model, report


def check_keys(
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


@contextmanager
def _without_peft(folder: Path) -> Iterator[Path]:
    """Yield a folder without the config of a PEFT adapter: transformers would attach the adapter to the model."""
    if not (folder / PEFT_CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="w2v-attn-") as temporary:
        for path in folder.iterdir():
            if path.name != PEFT_CONFIG:
                (Path(temporary) / path.name).symlink_to(path.resolve())
        yield Path(temporary)
