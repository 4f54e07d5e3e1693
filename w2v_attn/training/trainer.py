"""Hugging Face's Trainer for speech: batches by length, the task's loss, the schedule, and verified checkpoints."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from w2v_attn.checkpoints.checkpoint_error import first_line
from w2v_attn.checkpoints.encoder_parts import model_inputs
from w2v_attn.training.callbacks import TrainingListener
from w2v_attn.training.optimization import lr_multiplier, parameter_groups
from w2v_attn.training.options import OptimizerOptions
from w2v_attn.training.resume import PREFIX, find_damage, seal_checkpoint
from w2v_attn.training.speech_dataset import LengthBatchSampler, PaddingCollator, SpeechDataset
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import TrainingError
from w2v_attn.training.unpadded_frontend import set_lengths

logger = logging.getLogger(__name__)


class SpeechTrainer(Trainer):
    """Trainer on `batches` of `recordings`; `validate` returns metrics and a warning or None.

    One "epoch" of Trainer is the whole run: `batches` repeats the data as often as necessary, so a resumed run only has
    to skip batches.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        task: Task,
        *,
        recordings: SpeechDataset,
        batches: LengthBatchSampler,
        collate: PaddingCollator,
        optimizer: OptimizerOptions,
        validate: Callable[[], tuple[dict[str, float], str | None]],
        listener: TrainingListener,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        super().__init__(
            model,
            args,
            train_dataset=recordings,
            eval_dataset=recordings,  # required by Trainer; `evaluate` below does not use it
            data_collator=collate,
            callbacks=[*callbacks],
        )
        self.loaded_step = 0  # the step whose weights the model has after training
        self._task, self._batches, self._collate = task, batches, collate
        self._optimizer_options, self._validate, self._listener = optimizer, validate, listener
        # `compute_loss` divides by the number of recordings of a step: Trainer must not divide again.
        self.model_accepts_loss_kwargs = True

    def get_train_dataloader(self) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            collate_fn=self._collate,
            num_workers=workers,
            pin_memory=self.args.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            options = self._optimizer_options
            groups = parameter_groups(model or self.model, options)  # type: ignore[arg-type]
            self.optimizer = torch.optim.AdamW(
                [{key: value for key, value in group.items() if key != "names"} for group in groups],
                lr=options.lr,
                betas=(options.betas[0], options.betas[1]),
                eps=options.eps,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            factor = lr_multiplier(self._optimizer_options.schedule, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Return the number of recordings of a step, in all its forward passes and processes; all have equal weight."""
        count = torch.tensor(sum(len(batch["frames"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count  # type: ignore[union-attr]

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert not return_outputs
        assert num_items_in_batch is not None
        losses = losses_of(model, inputs, self._task)
        # DDP averages gradients over processes; the factor undoes that.
        return losses.sum() * self.args.world_size / num_items_in_batch

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}. Try a lower learning rate "
                "(optimizer.lr), a longer warm-up (optimizer.schedule.warmup), or training.precision=float32"
            )
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # type: ignore[override]
        measured, warning = self._validate()
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        before = self.state.best_metric
        value = measured[self._task.best_metric]
        if self.is_world_process_zero():
            self._listener.on_evaluate(self.state.global_step, measured, before is None or value < before, warning)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.model is not None
        broken = [name for name, parameter in self.model.named_parameters() if not _finite(parameter)]
        if broken:
            raise TrainingError(
                f"after step {self.state.global_step} the weights are not finite ({broken[0]}): they are not "
                "saved. Try a lower learning rate (optimizer.lr) or training.precision=float32"
            )
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError on a full disk
            raise TrainingError(
                f"the checkpoint of step {self.state.global_step} cannot be written: {first_line(error)}. Fix that and "
                "run the same command again: it resumes from the previous checkpoint"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal_checkpoint(Path(str(self.args.output_dir)) / f"{PREFIX}{self.state.global_step}")
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        """Load the best checkpoint, also if the folder was moved; keep the last weights if it is damaged."""
        folder = Path(str(self.args.output_dir)) / f"{PREFIX}{self.state.best_global_step}"
        wrong = find_damage(folder)
        if wrong is not None:
            logger.warning("the best checkpoint, %s, %s: the last weights are used instead", folder, wrong)
            return
        self.state.best_model_checkpoint = str(folder)
        super()._load_best_model()
        self.loaded_step = self.state.best_global_step or self.state.global_step

    def _finalize_training(self, *arguments: Any) -> Any:  # type: ignore[reportIncompatibleMethodOverride]
        self.loaded_step = self.state.global_step
        # If the folder was moved, Trainer does not find the best checkpoint.
        if self.state.best_model_checkpoint is None and self.state.best_global_step:
            self.state.best_model_checkpoint = str(self.args.output_dir)
        return super()._finalize_training(*arguments)

    def gather(self, found: list[Any]) -> list[Any]:
        """Return the concatenated lists of all processes."""
        return gather_object(found) if self.args.world_size > 1 else found


def _finite(parameter: Any) -> bool:
    """Return whether a parameter, or this process's shard of it, is finite."""
    part = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return bool(torch.isfinite(part).all())


def losses_of(model: nn.Module, batch: dict[str, Any], task: Task) -> Tensor:
    """Return the loss of each recording of a batch, float32 [B]. This is the only place where training runs the model.

    Args:
        model: The model, possibly wrapped (DDP, FSDP, PEFT).
        batch: A batch of `PaddingCollator`.
        task: The task.
    """
    set_lengths(model, batch["lengths"])
    outputs = model(**model_inputs(model, batch["input_values"], batch["attention_mask"]))
    return task.losses(outputs.logits, batch["labels"], batch["frames"])
