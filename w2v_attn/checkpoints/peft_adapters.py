"""PEFT adapters: folders with small updates of a base model (LoRA, DoRA, IA³, …), which are merged into its weights.

Source: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. Merging is peft's own.
"""

import copy
import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.checkpoints.adapters import read_tensors
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line, list_lines
from w2v_attn.checkpoints.json_object import read_json
from w2v_attn.checkpoints.unusable_files import CONFIG, PEFT_CONFIG, PEFT_WEIGHT_FILES, WEIGHT_FILES

# What peft puts in front of the names of the model's modules, and what it may put behind the parameter of DoRA.
PREFIX = "base_model.model."
DORA = re.compile(r"(lora_magnitude_vector)\.weight$")
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|^module\.")
# The modules of an encoder without a head.
ENCODER = ("feature_extractor", "feature_projection", "encoder", "adapter", "masked_spec_embed")
ENCODER += ("subsampling", "encode_positions", "layers")  # of OmniASR
# The encoder inside the base model of OmniASR with a head.
AUDIO_TOWER = "audio_tower"
INSTALL = "pip install 'w2v_attn[finetune]'"


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT adapter that is read, and not yet merged.

    Attributes:
        folder: Its folder.
        config: peft's config of it.
        tensors: Its weights, by their names in the file, which begin with PREFIX.
        base: The base model that its config names: a hub id or a path; None: it names none.
        base_revision: The revision of a hub id.
        class_name: The class of the model that it was trained on, as its config states; None: unknown.
    """

    folder: Path
    config: Any
    tensors: Mapping[str, Tensor]
    base: str | None
    base_revision: str | None
    class_name: str | None

    @property
    def kind(self) -> str:
        """The kind of adapter, for people."""
        kind = str(getattr(self.config.peft_type, "value", self.config.peft_type))
        return "DoRA" if getattr(self.config, "use_dora", False) else {"LORA": "LoRA", "IA3": "IA³"}.get(kind, kind)

    @property
    def modules(self) -> set[str]:
        """The first part of the names of all modules that it changes, such as `wav2vec2` and `lm_head`."""
        return {name.removeprefix(PREFIX).split(".")[0] for name in self.tensors if name.startswith(PREFIX)}

    @property
    def is_for_encoder(self) -> bool:
        """Whether it was trained on an encoder without a head."""
        return bool(self.modules & set(ENCODER))

    def head(self, name: str) -> Tensor | None:
        """Return a weight of a head that was trained as a whole, such as `lm_head.weight`; None if there is none."""
        return self.tensors.get(PREFIX + name)


def is_peft_folder(folder: Path) -> bool:
    """Return whether a folder holds a PEFT adapter."""
    return (folder / PEFT_CONFIG).is_file() and any((folder / name).is_file() for name in PEFT_WEIGHT_FILES)


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds a config and weights of a whole model."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHT_FILES)


def read_peft_adapter(folder: Path) -> PeftAdapter:
    """Read the config and the weights of a PEFT adapter.

    Raises:
        CheckpointError: peft is not installed or does not know this kind of adapter; the adapter cannot be merged; its
            files are damaged or contain more than tensors.
    """
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise CheckpointError(f"{folder} is a PEFT adapter, which needs the library peft: {INSTALL}") from error
    values = read_json(folder / PEFT_CONFIG)
    kind = values.get("peft_type")
    known: dict[str, Any] = {str(key.value): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise CheckpointError(
            f"{folder} is a PEFT adapter of the kind {kind!r}, which the installed peft does not know: install a newer "
            f"one, or merge it where it was made and save the merged model"
        )
    if values.get("megatron_config"):
        raise CheckpointError(
            f"{folder} was refused: its {PEFT_CONFIG} names a Python module to import (megatron_config). Nothing of it "
            "was run"
        )
    try:
        with _quiet():
            config = known[kind].from_pretrained(str(folder))
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise CheckpointError(f"the {PEFT_CONFIG} of {folder} is not valid: {first_line(error)}") from error
    if config.is_prompt_learning or not _can_merge(kind):
        raise CheckpointError(
            f"{folder} is a PEFT adapter of the kind {kind}, which has no weights that could be merged into those of a "
            "base model: its inputs or its forward differ. Use LoRA, DoRA, IA³ or another kind that peft can merge"
        )
    path = next(folder / name for name in PEFT_WEIGHT_FILES if (folder / name).is_file())
    # torch.compile and DistributedDataParallel leave their prefixes, and peft then loads nothing and only warns.
    tensors = {WRAPPERS.sub("", name): tensor for name, tensor in read_tensors(path).items()}
    if not any(name.startswith("base_model.") for name in tensors):  # transformers' save_peft_format=False
        tensors = {PREFIX + name: tensor for name, tensor in tensors.items()}
    mapping = values.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    texts = [values.get("base_model_name_or_path"), values.get("revision"), named]
    base, revision, class_name = (text if isinstance(text, str) and text else None for text in texts)
    return PeftAdapter(folder, config, tensors, base, revision, class_name)


def adapted_class(adapter: PeftAdapter, config: Any, stock: Any) -> Any:
    """Return the class of the model that an adapter was trained on.

    Args:
        adapter: The adapter.
        config: The config of its base model.
        stock: The class that the config names.
    """
    import transformers

    if adapter.is_for_encoder or getattr(config, "pooling", "mean") != "mean":
        return stock
    named = getattr(transformers, adapter.class_name or "", None)
    if named is not None and getattr(named, "config_class", None) is type(config):
        return named
    if adapter.head("lm_head.weight") is not None or adapter.head("ctc_head.weight") is not None:
        return transformers.MODEL_FOR_CTC_MAPPING[type(config)]
    if adapter.head("classifier.weight") is not None:
        return transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)]
    return stock


def fit_head(adapter: PeftAdapter, config: Any, model_class: type) -> None:
    """Give a config the sizes of the head that comes with an adapter, in place."""
    sizes = {"classifier": "num_labels", "projector": "classifier_proj_size"}
    if model_class.__name__.endswith("ForCTC"):
        sizes = {"lm_head": "vocab_size", "ctc_head": "vocab_size"}
    for module, key in sizes.items():
        weight = adapter.head(f"{module}.weight")
        if weight is not None and getattr(config, key) != len(weight):
            setattr(config, key, len(weight))


def without_replaced_heads(adapter: PeftAdapter, outer: Sequence[PeftAdapter]) -> PeftAdapter:
    """Return an adapter without the heads that adapters on top of it replace, which may have other sizes."""
    saved = getattr(adapter.config, "modules_to_save", None) or []
    replaced = [name for name in saved if any(one.head(f"{name}.weight") is not None for one in outer)]
    if not replaced:
        return adapter
    config = copy.deepcopy(adapter.config)
    config.modules_to_save = [name for name in saved if name not in replaced] or None
    prefixes = tuple(f"{PREFIX}{name}." for name in replaced)
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith(prefixes)}
    return dataclasses.replace(adapter, config=config, tensors=tensors)


def without_replaced(adapters: Sequence[PeftAdapter], report: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return transformers' report about the base model without the weights that its adapters replace.

    Raises:
        CheckpointError: Neither the base nor an adapter has the weights of the head.
    """

    def is_replaced(name: str) -> bool:
        return any(adapter.head(name) is not None for adapter in adapters)

    missing = [name for name in report["missing_keys"] if not is_replaced(name)]
    prefix = f"{model.base_model_prefix}."
    heads = [name for name in missing if hasattr(model, prefix[:-1]) and not name.startswith(prefix)]
    if heads:
        raise CheckpointError(
            f"neither it nor the adapter {adapters[0].folder} has the head that {type(model).__name__} needs "
            f"({', '.join(sorted(heads)[:4])}): peft saves a head with modules_to_save=[…]. Without it, only features "
            "can be extracted"
        )
    mismatched = [found for found in report["mismatched_keys"] if not is_replaced(found[0])]
    return {**report, "missing_keys": missing, "mismatched_keys": mismatched}


def merge_peft_adapter(adapter: PeftAdapter, model: Any, prefix: str) -> Any:
    """Return a model with the weights of an adapter merged into its own.

    Args:
        adapter: The adapter.
        model: A Hugging Face model in float32, with or without a head. It is changed.
        prefix: The name of the encoder in models with a head, such as `wav2vec2`.

    Raises:
        CheckpointError: The adapter has weights that the model lacks, or the other way round, or of other shapes; or
            the merged weights are not finite.
    """
    has_head = hasattr(model, prefix)
    if adapter.is_for_encoder:
        target = getattr(model, prefix) if has_head else model
        merged = _merge(adapter, adapter.tensors, target)
        if not has_head:
            return merged
        setattr(model, prefix, merged)
        return model
    if has_head:
        return _merge(adapter, adapter.tensors, model)
    # Its names are those of a model with a head: the encoder gets its place in a module without one.
    whole = nn.Module()
    whole.config = model.config
    nested = any(name.startswith(f"{PREFIX}{prefix}.{AUDIO_TOWER}.") for name in adapter.tensors)
    base = nn.Module() if nested else model
    setattr(whole, prefix, base)
    if nested:
        setattr(base, AUDIO_TOWER, model)
    mine = {name: t for name, t in adapter.tensors.items() if _first(name) in (prefix, None)}
    merged = getattr(_merge(adapter, mine, whole), prefix)
    return getattr(merged, AUDIO_TOWER) if nested else merged


def _first(name: str) -> str | None:
    """Return the first part of a module's name; None for tensors that all modules share, such as those of VeRA."""
    return name.removeprefix(PREFIX).split(".")[0] if name.startswith(PREFIX) else None


def _merge(adapter: PeftAdapter, tensors: Mapping[str, Tensor], model: Any) -> Any:
    from peft import PeftModel
    from peft.utils import set_peft_model_state_dict

    config = _config_for(adapter, tensors, model)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            wrapped: Any = PeftModel(model, config)
        except (ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{adapter.folder} does not fit the base model: {first_line(error)}. Is it an adapter of another "
                "checkpoint?"
            ) from error
        _check(adapter, tensors, wrapped)
        try:
            set_peft_model_state_dict(wrapped, dict(tensors))
            merged = wrapped.merge_and_unload(safe_merge=True)
        except Exception as error:  # each kind of adapter has its own
            raise CheckpointError(f"{adapter.folder} cannot be merged: {first_line(error)}") from error
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    return merged


def _config_for(adapter: PeftAdapter, tensors: Mapping[str, Tensor], model: Any) -> Any:
    """Return the config for a model that may lack the heads which the adapter replaces."""
    config = copy.deepcopy(adapter.config)
    config.inference_mode = True
    present = {name.split(".")[-1] for name, _ in model.named_modules()} | dict(model.named_modules()).keys()
    saved = getattr(config, "modules_to_save", None)
    if saved:
        config.modules_to_save = [name for name in saved if name in present] or None
    return config


def _check(adapter: PeftAdapter, tensors: Mapping[str, Tensor], wrapped: Any) -> None:
    """Raise CheckpointError unless the file has exactly the weights that peft expects for this model."""
    from peft.utils import get_peft_model_state_dict

    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    wanted = {DORA.sub(r"\1", name): list(tensor.shape) for name, tensor in expected.items()}
    found = {DORA.sub(r"\1", name): list(tensor.shape) for name, tensor in tensors.items()}
    wrong = [f"missing: {name}" for name in wanted if name not in found]
    wrong += [f"unexpected: {name}" for name in found if name not in wanted]
    wrong += [
        f"of shape {found[name]} instead of {shape}: {name}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        why = "Is it an adapter of another checkpoint, or was it saved incompletely?"
        if [0] in found.values():  # peft #1328
            why = "Its weights are empty: they were saved while DeepSpeed's ZeRO had them sharded. Save it again"
        raise CheckpointError(f"{adapter.folder} does not fit the base model:\n  {list_lines(wrong)}\n{why}")


def _can_merge(kind: str) -> bool:
    """Return whether peft can merge adapters of this kind."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner = {str(key.value): cls for key, cls in PEFT_TYPE_TO_TUNER_MAPPING.items()}.get(kind)
    return hasattr(tuner, "merge_and_unload")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress peft's warnings: this module returns or raises what they report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
