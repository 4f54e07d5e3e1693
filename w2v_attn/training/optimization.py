"""The optimizer's parameters: which are trained, their learning rates and weight decay, and the schedule."""

import logging
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from w2v_attn.checkpoints.adapters import adapter_parameters, has_adapters
from w2v_attn.checkpoints.encoder_parts import base_encoder, encoder_parts, is_encoder
from w2v_attn.patching.replace import projection_names
from w2v_attn.training.options import LoraOptions, OptimizerOptions, ScheduleOptions

logger = logging.getLogger(__name__)

FREEZE = ("none", "feature_encoder", "encoder", "all_but_adapters")
# peft trains and saves only modules, and the weights of the layers are a parameter of the model itself.
WEIGHTED_AND_LORA = "task.layers=weighted and training.lora cannot be combined: give task.layers=last"


def base_of(model: Any) -> nn.Module:
    """Return the encoder of a model without its head."""
    return getattr(model, model.base_model_prefix)


def check_freeze(what: str) -> None:
    """Raise ValueError for a value of `training.freeze` that is not one of FREEZE."""
    if what not in FREEZE:
        raise ValueError(f"training.freeze must be one of {', '.join(FREEZE)}, got {what}")


def freeze(model: Any, what: str) -> None:
    """Freeze parameters for the whole run.

    Args:
        model: A Hugging Face model with a head.
        what: "none", "feature_encoder" (the convolutions), "encoder" (all but the head) or "all_but_adapters" (all but
            the adapters and the head).

    Raises:
        ValueError: `what` has another value, or the model has no adapters.
    """
    check_freeze(what)
    if what == "feature_encoder":
        if hasattr(model, "freeze_feature_encoder"):
            model.freeze_feature_encoder()
        else:  # OmniASR
            for layer in encoder_parts(base_encoder(model)).convolutions:
                layer.requires_grad_(False)
    elif what == "encoder":
        base_of(model).requires_grad_(False)
    elif what == "all_but_adapters":
        if not has_adapters(model.config):
            raise ValueError(
                "training.freeze=all_but_adapters needs a checkpoint whose blocks have adapters (MMS), and this one "
                "has none: try training.lora.rank=8"
            )
        base_of(model).requires_grad_(False)
        for parameter in adapter_parameters(model).values():
            parameter.requires_grad_(True)


def add_lora(model: Any, options: LoraOptions) -> Any:
    """Return the model with low-rank updates of its projections; all other parameters but the head are frozen.

    Raises:
        ValueError: peft is not installed, the model lacks the projections, or its head weights the layers.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError("training.lora needs peft: pip install 'w2v_attn[finetune]'") from error
    if any(name == "layer_weights" for name, _ in model.named_parameters(recurse=False)):
        raise ValueError(WEIGHTED_AND_LORA)
    targets = projection_names(model) if options.targets is None else list(options.targets)
    _check_targets(model, targets)
    parts = {name: part for name, part in model.named_children() if name != model.base_model_prefix}
    head = [name for name, part in parts.items() if any(True for _ in part.parameters())]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=targets,
        modules_to_save=head,
    )
    return get_peft_model(model, config)


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    """Raise ValueError if no name of `training.lora.targets` is that of a module; warn of those that are not."""
    modules = dict(model.named_modules())
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in modules)]
    if not unknown:
        return
    known = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Linear)})
    text = f"training.lora.targets: there is no module {', '.join(unknown)}; the linear maps are {', '.join(known)}"
    if len(unknown) == len(targets):
        raise ValueError(text)
    logger.warning("%s", text)


def parameter_groups(model: nn.Module, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Return parameter groups for the optimizer, each with `params`, `lr`, `weight_decay` and `names`.

    Raises:
        ValueError: The pattern of a factor matches no trained parameter, or all parameters are frozen.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("nothing is trained: every parameter is frozen")
    blocks_above = _blocks_above(model)
    for factor in options.factors:
        if not any(re.search(factor.pattern, name) for name in trained):
            raise ValueError(
                f"optimizer.factors: no trained parameter matches {factor.pattern}; they are {_some(trained)}"
            )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trained.items():
        rate = options.lr * options.layer_decay ** blocks_above.get(parameter, 0)
        decay = options.weight_decay if parameter.dim() > 1 else 0.0
        for factor in options.factors:
            if re.search(factor.pattern, name):
                rate, decay = rate * factor.lr, decay * factor.weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _blocks_above(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return parameter -> the number of blocks between it and the head: 0 in the last, all before the first.

    Parameters after the blocks are missing; the last norm counts with those before the first block.
    """
    found: dict[nn.Parameter, int] = {}
    for base in filter(is_encoder, model.modules()):
        parts = encoder_parts(base)
        depth = len(parts.blocks)
        before = (parts.feature_encoder, parts.projection_norm, parts.projection, parts.positions, parts.norm)
        for module in before:
            found |= dict.fromkeys(() if module is None else module.parameters(), depth)
        if (masked := getattr(base, "masked_spec_embed", None)) is not None:
            found[masked] = depth
        for number, block in enumerate(parts.blocks):
            found |= dict.fromkeys(block.parameters(), depth - 1 - number)
    return found


def _some(names: dict[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" … and {len(listed) - 5} more" if len(listed) > 5 else "")


def lr_multiplier(options: ScheduleOptions, max_steps: int) -> Callable[[int], float]:
    """Return the learning rate schedule: a function from the step, 0 to `max_steps`, to a factor of the learning rate.

    The factor rises linearly from `init_scale` to 1 (warm-up), holds at 1, and decays to `final_scale`.

    Source: fairseq, optim/lr_scheduler/tri_stage_lr_scheduler.py; wav2vec 2.0, section 4.3.

    Raises:
        ValueError: The shares are invalid, or the decay is unknown.
    """
    if options.warmup < 0 or options.hold < 0 or options.warmup + options.hold > 1:
        raise ValueError(
            f"schedule: warmup and hold must be shares of all steps, got {options.warmup} and {options.hold}"
        )
    if options.decay not in ("exponential", "linear"):
        raise ValueError(f"schedule.decay must be exponential or linear, got {options.decay}")
    if options.decay == "exponential" and not options.final_scale > 0:
        raise ValueError(
            f"an exponential decay never reaches {options.final_scale}: give a schedule.final_scale above 0, or "
            "decay=linear"
        )
    warmup, hold = int(options.warmup * max_steps), int(options.hold * max_steps)
    decay = max(1, max_steps - warmup - hold)

    def factor(step: int) -> float:
        if step < warmup:
            return options.init_scale + (1 - options.init_scale) * step / warmup
        if step < warmup + hold:
            return 1.0
        progress = min(1.0, (step - warmup - hold) / decay)
        if options.decay == "linear":
            return 1 + (options.final_scale - 1) * progress
        return options.final_scale**progress

    return factor
