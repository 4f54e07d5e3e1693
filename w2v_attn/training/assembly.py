"""Assembly of a trainer: the patched model, its data, its validation and its callbacks."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch

from w2v_attn.checkpoints.encoder_parts import count_frames
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.training.callbacks import EarlyStopping, FreezeEncoder, ListenerCallback, TrainingListener
from w2v_attn.training.evaluation import measure, predict
from w2v_attn.training.optimization import add_lora, freeze, parameter_groups
from w2v_attn.training.options import Recipe
from w2v_attn.training.preflight import DataScan
from w2v_attn.training.regularization import patch_layerdrop, patch_spec_augment
from w2v_attn.training.speech_dataset import Augmentation, LengthBatchSampler, PaddingCollator, SpeechDataset
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.trainer import SpeechTrainer
from w2v_attn.training.unpadded_frontend import patch_frontend


def build_trainer(
    recipe: Recipe,
    task: Task,
    audio: Checkpoint,
    found: DataScan,
    augmentation: Augmentation,
    args: Any,
    output: Path,
    listener: TrainingListener,
) -> tuple[SpeechTrainer, ListenerCallback]:
    """Build the trainer of a run.

    Args:
        recipe: The recipe.
        task: The task.
        audio: The model with the task's head, and how it expects its waveforms.
        found: The usable recordings.
        augmentation: Changes of the training recordings.
        args: TrainingArguments.
        output: The run folder.
        listener: Receives progress.

    Returns:
        The trainer, and the callback whose `stopped` says whether the run was interrupted.

    Raises:
        ValueError: The recipe names parameters that the model lacks.
    """
    from transformers import PrinterCallback

    args.metric_for_best_model = task.best_metric  # it depends on the vocabulary
    training, model, prefix = recipe.training, audio.model, audio.model.base_model_prefix
    frames_of = partial(count_frames, model)
    freeze(model, training.freeze)
    patch_frontend(model)
    patch_spec_augment(model)
    patch_layerdrop(model, keep_gradients=args.world_size > 1)
    if training.gradient_checkpointing:
        _checkpoint_activations(model)
    if training.lora.rank > 0:
        model = add_lora(model, training.lora)
    parameter_groups(model, recipe.optimizer)  # raises before training for invalid options
    audio = dataclasses.replace(audio, model=model)
    recognizer = task.recognizer(audio, args.device, recipe.backend)

    rows = found.splits.train
    recordings = SpeechDataset(
        rows,
        task,
        augmentation,
        sample_rate=audio.sample_rate,
        do_normalize=audio.do_normalize,
        epsilon=audio.normalize_epsilon,
        seed=recipe.seed,
        keep=args.dataloader_num_workers == 0,
    )
    longest = max(1.0, augmentation.longest_factor)
    batches = LengthBatchSampler(
        [found.seconds[f"train {row.id}"] * longest + 2 * recipe.augmentation.silence for row in rows],
        training.batch_seconds,
        training.max_steps * training.gradient_accumulation_steps,
        seed=recipe.seed,
        rank=args.process_index,
        world_size=args.world_size,
        classes=task.classes(rows) if recipe.data.balance else None,
    )

    def validate() -> tuple[dict[str, float], str | None]:
        predictions = predict(
            recognizer,
            found.splits.valid,
            task,
            rank=args.process_index,
            world_size=args.world_size,
            gather=trainer.gather,
        )
        return measure(task, predictions), task.warning(predictions)

    reporting = ListenerCallback(listener, lambda here: _any_process(here, args))
    callbacks: list[Any] = [reporting]
    if training.freeze_encoder_steps > 0:
        callbacks.append(FreezeEncoder(prefix, training.freeze_encoder_steps))
    if training.early_stopping_patience > 0:
        callbacks.append(EarlyStopping(f"eval_{task.best_metric}", training.early_stopping_patience))
    if args.process_index == 0:
        callbacks.append(_tensorboard(output))
    trainer = SpeechTrainer(
        model,
        args,
        task,
        recordings=recordings,
        batches=batches,
        collate=PaddingCollator(frames_of, task.target_dtype),
        optimizer=recipe.optimizer,
        validate=validate,
        listener=listener,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints
    torch.manual_seed(recipe.seed * 1000 + args.process_index)  # dropout differs between processes
    return trainer, reporting


def _checkpoint_activations(model: Any) -> None:
    """Recompute blocks in the backward; transformers 5.23 and 5.17 have different names for it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _tensorboard(output: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(output / "tensorboard")))


def _any_process(here: bool, args: Any) -> bool:
    if args.world_size == 1:
        return here
    flag = torch.tensor(int(here), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
