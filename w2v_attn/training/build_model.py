"""The model that a run trains: a pretrained or new encoder with the task's head and patched attention."""

import dataclasses
import logging
from typing import Any

from w2v_attn.checkpoints.adapters import reset_adapters
from w2v_attn.checkpoints.ctc_head import BLANK_KEY
from w2v_attn.checkpoints.encoder_parts import base_encoder, encoder_config
from w2v_attn.checkpoints.families import FAMILIES, is_omniasr, supported_families
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.pooled_classifiers import pooled_class
from w2v_attn.patching.replace import replace_attention
from w2v_attn.training.omniasr_heads import encoder_weights, head_config
from w2v_attn.training.options import Recipe
from w2v_attn.training.regularization import masks_frames
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_arguments import trains_on_cpu

logger = logging.getLogger(__name__)


def build_model(recipe: Recipe, task: Task, checkpoint: Checkpoint | None) -> Any:
    """Build a Hugging Face model with the task's head and patched attention; what the checkpoint lacks is random.

    Dropout probabilities are fixed when a model is built from its config, so the model is built with the recipe's
    values, and the weights of the checkpoint are copied into it.

    Raises:
        ValueError: The family is not supported, transformers rejects the config, or the weights do not fit.
    """
    regularization = {
        key: value for key, value in dataclasses.asdict(recipe.regularization).items() if value is not None
    }
    if checkpoint is None:
        config = _new_config(recipe, task, regularization)
    else:
        config = _config_with_head(checkpoint.model.config, task)
        _regularize(config, regularization)
    if not hasattr(encoder_config(config), "conv_kernel"):
        raise ValueError(
            f"{config.model_type} reads filter banks, but fine-tuning reads waveforms: choose another family"
        )
    model_class = _head_classes()[task.head][type(config)]
    if task.pooling != "mean":
        config.pooling, model_class = task.pooling, pooled_class(model_class)
    if checkpoint is not None and task.keeps_head and task.head == "ForCTC":
        # Some heads have more outputs than their tokenizer has symbols.
        config.vocab_size = max(config.vocab_size, checkpoint.model.config.vocab_size)
    if not is_omniasr(config) and (recipe.regularization.mask_time_prob or recipe.regularization.mask_feature_prob):
        config.apply_spec_augment = True  # False in some checkpoints
    model = model_class(config)
    task.initialize_head(model)
    for name, parameter in model.named_parameters():
        # Unused if frames are not masked: DistributedDataParallel would wait for its gradient.
        if name.endswith("masked_spec_embed") and not masks_frames(config):
            parameter.requires_grad_(False)
    if checkpoint is not None:
        _put_weights(model, checkpoint.model, same_head=_same_head(model, checkpoint.model, task))
        if is_omniasr(checkpoint.model.config) and not is_omniasr(config):
            logger.warning(
                "transformers has no classifier on OmniASR: the model becomes a %s with the same weights and features",
                model_class.__name__,
            )
    if recipe.training.new_adapters:
        reset_adapters(model)
    # On a GPU an unpadded step takes longer than a padded one, due to its launches (1.2 × with ragged lengths on an
    # H200). SEW is always unpadded, since it would squeeze the end of a recording together with its padding.
    unpad = trains_on_cpu(recipe.device) or config.model_type == "sew"
    return replace_attention(model, backend=recipe.backend, unpad=unpad)


def _head_classes() -> dict[str, Any]:
    import transformers

    return {
        "ForCTC": transformers.MODEL_FOR_CTC_MAPPING,
        "ForSequenceClassification": transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    }


def _new_config(recipe: Recipe, task: Task, regularization: dict[str, Any]) -> Any:
    """Return the config of a model from random weights."""
    from transformers import AutoConfig

    values = dict(recipe.config)
    family = values.pop("model_type", None)
    if family not in FAMILIES:
        raise ValueError(
            f"model.config.model_type is {family!r}; to train from random weights choose one of {supported_families()}"
        )
    try:
        config = AutoConfig.for_model(family, **values)
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise ValueError(f"model.config is not valid: {error}") from error
    config = _config_with_head(config, task)
    _regularize(config, regularization)
    return config


def _config_with_head(config: Any, task: Task) -> Any:
    """Return a copy of a config for a model with the task's head."""
    config = head_config(config, task.head)
    for key, value in task.config_changes().items():
        if key != BLANK_KEY or hasattr(config, key):  # elsewhere the blank is the padding symbol
            setattr(config, key, value)
    vars(config).pop("auto_map", None)  # it would name classes of the checkpoint's folder
    return config


def _regularize(config: Any, values: dict[str, Any]) -> None:
    """Put values of `regularization` into a config, in place. Raises ValueError for what OmniASR does not have."""
    encoder = encoder_config(config)
    for key, value in values.items():
        if is_omniasr(config) and not hasattr(encoder, key):
            if value:
                raise ValueError(f"regularization.{key}={value}: {config.model_type} has no such thing; leave it out")
        else:
            setattr(encoder, key, value)


def _same_head(model: Any, stock: Any, task: Task) -> bool:
    """Return whether the checkpoint's head has the outputs of the task, so that its weights are kept."""
    if not type(stock).__name__.endswith(task.head):
        return False
    return task.keeps_head and {n: v.shape for n, v in model.state_dict().items() if "masked_spec_embed" not in n} == {
        n: v.shape for n, v in stock.state_dict().items() if "masked_spec_embed" not in n
    }


def _put_weights(model: Any, stock: Any, *, same_head: bool) -> None:
    target, source = (model, stock) if same_head else (base_encoder(model), base_encoder(stock))
    weights = encoder_weights(source, model.config) if not same_head else source.state_dict()
    report = target.load_state_dict(weights, strict=False)
    # The vector that replaces masked frames exists only if the config masks frames.
    wrong = [key for key in (*report.missing_keys, *report.unexpected_keys) if "masked_spec_embed" not in key]
    if wrong:
        raise ValueError(f"the checkpoint's weights do not fit the recipe's model: {', '.join(wrong[:10])}")
