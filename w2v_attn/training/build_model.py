"""The model that a run trains: an encoder, from a checkpoint or new, with the task's head, and our attention."""

import dataclasses
import logging
from typing import Any

from w2v_attn.checkpoints.adapters import reset_adapters
from w2v_attn.checkpoints.families import FAMILIES, supported_families
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.pooled_classifiers import pooled_class
from w2v_attn.patching.replace import replace_attention
from w2v_attn.training.options import Recipe
from w2v_attn.training.regularization import masks_frames
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_arguments import trains_on_cpu

logger = logging.getLogger(__name__)


def build_model(recipe: Recipe, task: Task, checkpoint: Checkpoint | None) -> Any:
    """A stock model with the task's head and our attention; parts that the checkpoint has not are drawn at random.

    Dropouts are built into a model's modules from its config, so the model is made anew with the recipe's values, and
    the weights of the checkpoint are put into it.

    Raises:
        ValueError: a family that is not supported, a config that transformers refuses, or weights that do not fit.
    """
    changes = {
        **{key: value for key, value in dataclasses.asdict(recipe.regularization).items() if value is not None},
        **task.config_changes(),
    }
    config = _new_config(recipe, changes) if checkpoint is None else _changed(checkpoint.model.config, changes)
    if not hasattr(config, "conv_kernel"):
        raise ValueError(
            f"{config.model_type} reads filter banks, and fine-tuning feeds waveforms: take another family"
        )
    model_class = _head_classes()[task.head][type(config)]
    if task.pooling != "mean":
        config.pooling, model_class = task.pooling, pooled_class(model_class)
    if checkpoint is not None and task.keeps_head:
        _keep_sizes(config, checkpoint.model.config, task)
    if recipe.regularization.mask_time_prob or recipe.regularization.mask_feature_prob:
        config.apply_spec_augment = True  # a checkpoint may say False
    model = model_class(config)
    for name, parameter in model.named_parameters():
        # Where frames are not masked nothing uses it: DistributedDataParallel would wait for its gradient.
        if name.endswith("masked_spec_embed") and not masks_frames(config):
            parameter.requires_grad_(False)
    if checkpoint is not None:
        _put_weights(model, checkpoint.model, same_head=_same_head(model, checkpoint.model, task))
    if recipe.training.new_adapters:
        reset_adapters(model)
    # On a GPU the launches of an unpadded step took longer than the padding: 1.2 × with ragged lengths on an H200.
    # But SEW's recordings are squeezed with their padding where it is kept.
    unpad = trains_on_cpu(recipe.device) or config.model_type == "sew"
    return replace_attention(model, backend=recipe.backend, unpad=unpad)


def _head_classes() -> dict[str, Any]:
    import transformers

    return {
        "ForCTC": transformers.MODEL_FOR_CTC_MAPPING,
        "ForSequenceClassification": transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    }


def _new_config(recipe: Recipe, changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    values = {**recipe.config, **changes}
    family = values.pop("model_type", None)
    if family not in FAMILIES:
        raise ValueError(
            f"model.config.model_type is {family!r}; to train from random weights name one of {supported_families()}"
        )
    # Labels are not values of a config's own: they are set like anybody would set them.
    labels = {key: values.pop(key) for key in ("num_labels", "id2label", "label2id") if key in values}
    try:
        config = AutoConfig.for_model(family, **values)
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise ValueError(f"model.config is not valid: {error}") from error
    return _changed(config, labels)


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    import copy

    config = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(config, key, value)
    vars(config).pop("auto_map", None)  # the classes are stock's again, or ours
    return config


def _keep_sizes(config: Any, theirs: Any, task: Task) -> None:
    """A head that is kept has the checkpoint's sizes: some have more symbols than their tokenizer knows."""
    if task.head == "ForCTC":
        config.vocab_size = max(config.vocab_size, theirs.vocab_size)
        return
    for name in ("classifier_proj_size", "use_weighted_layer_sum"):
        if getattr(config, name) != getattr(theirs, name):
            logger.warning("the head of the checkpoint has %s=%s: a new head is made", name, getattr(theirs, name))


def _same_head(model: Any, stock: Any, task: Task) -> bool:
    """Whether the checkpoint's own head says what the task wants said, symbol for symbol."""
    if not type(stock).__name__.endswith(task.head):
        return False
    return task.keeps_head and {n: v.shape for n, v in model.state_dict().items() if "masked_spec_embed" not in n} == {
        n: v.shape for n, v in stock.state_dict().items() if "masked_spec_embed" not in n
    }


def _put_weights(model: Any, stock: Any, *, same_head: bool) -> None:
    prefix = model.base_model_prefix
    target, source = (model, stock) if same_head else (getattr(model, prefix), getattr(stock, prefix, stock))
    report = target.load_state_dict(source.state_dict(), strict=False)
    # The vector that SpecAugment puts in the place of frames is there only where the config masks.
    wrong = [key for key in (*report.missing_keys, *report.unexpected_keys) if "masked_spec_embed" not in key]
    if wrong:
        raise ValueError(f"the checkpoint's weights do not fit the recipe's model: {', '.join(wrong[:10])}")
