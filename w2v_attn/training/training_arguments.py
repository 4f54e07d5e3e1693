"""TrainingArguments of a recipe: device, processes, precision, and when to validate and save."""

import os
from pathlib import Path
from typing import Any

import torch

from w2v_attn.checkpoints.adapters import check_language
from w2v_attn.training.optimization import WEIGHTED_AND_LORA, check_freeze, lr_multiplier
from w2v_attn.training.options import Recipe
from w2v_attn.training.training_errors import check_expression

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
MAX_LOGGED = 500  # points of a learning curve
DDP_TIMEOUT = 24 * 3600  # seconds
SAVE_TOTAL_LIMIT = 3  # checkpoints: the best, the last, and the one before


def training_arguments(recipe: Recipe, folder: Path) -> Any:
    """Return the TrainingArguments of a recipe. folder: of the checkpoints.

    Raises:
        ValueError: The precision or device is not available, or a value of the recipe is invalid.
    """
    from transformers import TrainingArguments

    training = recipe.training
    for name in ("max_steps", "batch_seconds", "gradient_accumulation_steps", "eval_steps"):
        if not getattr(training, name) > 0:
            raise ValueError(f"training.{name} must be above 0, got {getattr(training, name)}")
    if not recipe.optimizer.lr > 0:
        raise ValueError(f"optimizer.lr must be above 0, got {recipe.optimizer.lr}")
    _check(recipe)
    on_cpu = trains_on_cpu(recipe.device)
    if training.fsdp and (on_cpu or int(os.environ.get("WORLD_SIZE", "1")) == 1):
        raise ValueError("training.fsdp shards a model over GPUs: start it with torchrun on several")
    if training.fsdp and training.lora.rank > 0:
        raise ValueError("training.fsdp and training.lora cannot be combined: low-rank updates need no sharding")
    precision = _precision(training.precision, on_cpu)
    every = min(training.eval_steps, training.max_steps)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.max_steps,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_timeout=DDP_TIMEOUT,  # the other ranks wait while rank 0 reads every recording once
        ddp_find_unused_parameters=training.freeze_encoder_steps > 0,
        fsdp="full_shard auto_wrap" if training.fsdp else None,
        fsdp_config={"fsdp_version": 2} if training.fsdp else None,
        seed=recipe.seed,
        eval_strategy="steps",
        save_strategy="steps",
        logging_strategy="steps",
        eval_steps=every,
        save_steps=every,
        logging_steps=_divisor(every, max(1, training.max_steps // MAX_LOGGED)),
        logging_nan_inf_filter=False,  # a non-finite loss ends the run
        save_total_limit=SAVE_TOTAL_LIMIT,
        load_best_model_at_end=True,
        metric_for_best_model="loss",  # `finetune` sets that of the task
        greater_is_better=False,
        remove_unused_columns=False,
        dataloader_num_workers=_workers(training.workers, on_cpu),
        disable_tqdm=True,
        report_to="none",
    )
    args._n_gpu = min(args.n_gpu, 1)  # one GPU per process; torchrun starts one process per GPU
    return args


def _check(recipe: Recipe) -> None:
    """Raise ValueError for values that would otherwise fail late."""
    optimizer = recipe.optimizer
    check_freeze(recipe.training.freeze)
    lr_multiplier(optimizer.schedule, recipe.training.max_steps)
    for factor in optimizer.factors:
        check_expression("optimizer.factors", factor.pattern)
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise ValueError(f"optimizer.betas must be two numbers, at least 0 and below 1, got {optimizer.betas}")
    if optimizer.weight_decay < 0 or optimizer.max_grad_norm < 0:
        raise ValueError("optimizer.weight_decay and optimizer.max_grad_norm must not be below 0")
    for name, value in vars(recipe.regularization).items():
        if value is None:
            continue
        if name.endswith("_length"):
            if value < 1:
                raise ValueError(f"regularization.{name} must be 1 or above, got {value}")
        elif name.endswith("_min_masks"):
            if value < 0:
                raise ValueError(f"regularization.{name} must be 0 or above, got {value}")
        elif not 0 <= value <= 1:
            raise ValueError(f"regularization.{name} must be from 0 to 1, got {value}")
    _check_adapters(recipe)
    if recipe.training.lora.rank > 0 and getattr(recipe.task, "layers", "last") == "weighted":
        raise ValueError(WEIGHTED_AND_LORA)


def _check_adapters(recipe: Recipe) -> None:
    """Raise ValueError for options of language adapters that contradict each other."""
    training, language = recipe.training, recipe.language
    if language is not None and recipe.checkpoint is None:
        raise ValueError(f"model.language={language} needs a checkpoint with adapters: give model.checkpoint")
    if training.freeze == "all_but_adapters" and training.lora.rank > 0:
        raise ValueError(
            "training.freeze=all_but_adapters and training.lora cannot be combined: train the adapters only"
        )
    if training.new_adapters:
        if language is None:
            raise ValueError("training.new_adapters creates the adapters of a language: name it, model.language=tur")
        check_language(language)
        if training.freeze == "encoder" or training.lora.rank > 0:
            raise ValueError("training.new_adapters must be trained: give training.freeze=all_but_adapters and no lora")


def trains_on_cpu(device: str) -> bool:
    """Return whether a recipe trains on the CPU. Raises ValueError if its device is not available."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"device must be auto, cpu or cuda for training, got {device}: select a GPU with CUDA_VISIBLE_DEVICES"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but no GPU is available: use device=auto or device=cpu")
    return device == "cpu" or not torch.cuda.is_available()


def _precision(precision: str, on_cpu: bool) -> str:
    if precision not in PRECISIONS:
        raise ValueError(f"training.precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    if precision == "auto":
        return "bfloat16" if not on_cpu and torch.cuda.is_bf16_supported() else "float32"
    if precision == "float16" and on_cpu:
        raise ValueError("training.precision=float16 needs a GPU: use bfloat16 or float32")
    return precision


def _workers(workers: int | None, on_cpu: bool) -> int:
    """Return the number of worker processes: by default 0 on a CPU, whose cores the model uses, and 4 otherwise."""
    if workers is not None and workers < 0:
        raise ValueError(f"training.workers must be 0 or above, got {workers}")
    return (0 if on_cpu else 4) if workers is None else workers


def _divisor(number: int, wanted: int) -> int:
    """Return the greatest divisor of `number` up to `wanted`, so that a log entry precedes each checkpoint."""
    return max(d for d in range(1, min(number, wanted) + 1) if number % d == 0)
