"""`finetune`: train what a recipe describes and write a model folder."""

import dataclasses
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from w2v_attn import __version__
from w2v_attn.checkpoints.adapters import EXAMPLE_ID, has_adapters
from w2v_attn.checkpoints.checkpoint_error import first_line
from w2v_attn.checkpoints.encoder_parts import count_frames, encoder_config
from w2v_attn.checkpoints.huggingface_folder import quiet_transformers
from w2v_attn.checkpoints.loading import Checkpoint, load_checkpoint
from w2v_attn.checkpoints.processor_files import WAV2VEC2_EPSILON
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.corpus.splits import Splits, make_splits
from w2v_attn.runs.row_reader import read_row, select_channel
from w2v_attn.training import model_folder
from w2v_attn.training.assembly import build_trainer
from w2v_attn.training.build_model import build_model
from w2v_attn.training.callbacks import SilentListener, TrainingListener
from w2v_attn.training.evaluation import measure, predict
from w2v_attn.training.metrics import finite
from w2v_attn.training.omniasr_heads import random_encoder
from w2v_attn.training.options import DataOptions, Recipe
from w2v_attn.training.preflight import (
    DataScan,
    LengthCache,
    Unreadable,
    check_overlap,
    describe_data,
    named_splits,
    scan_splits,
)
from w2v_attn.training.regularization import restore_layerdrop, restore_spec_augment
from w2v_attn.training.resume import (
    CHECKPOINTS,
    LENGTHS,
    as_yaml,
    check_fingerprint,
    locked_run_folder,
    newest_checkpoint,
    write_dropped,
)
from w2v_attn.training.speech_dataset import Augmentation
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.tasks.task_registry import task_class
from w2v_attn.training.trainer import SpeechTrainer
from w2v_attn.training.training_arguments import training_arguments
from w2v_attn.training.training_errors import DataError, TrainingError
from w2v_attn.training.unpadded_frontend import restore_frontend

# Maximum seconds of a recording for validation, test or noise.
MAX_SECONDS = 600.0
# Seconds for gloo's threads to end; they need a millisecond.
GLOO_SHUTDOWN_SECONDS = 0.2
NOISE, MAX_CACHED_NOISES = "noise", 256


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a run.

    Attributes:
        metrics: Split -> metric -> value, at the best checkpoint; empty if the run was interrupted.
        step: The step of that checkpoint, or the last step of an interrupted run.
        seconds: Duration.
        interrupted: Whether the run was interrupted; the same call resumes it.
        warning: A problem of the model as a whole; None: there is none.
    """

    metrics: dict[str, dict[str, float]]
    step: int
    seconds: float
    interrupted: bool
    warning: str | None = None


def finetune(recipe: Recipe, output: Path, listener: TrainingListener | None = None) -> FinetuneResult:
    """Train what a recipe describes and write a Hugging Face folder; a repeated call resumes an unfinished run.

    `output` contains the model with its card, curves and results; `valid/` and `test/` with predictions; `recipe.yaml`;
    `tensorboard/`; and, during training, `checkpoints/`. Under torchrun every process calls this function.

    Args:
        recipe: The recipe.
        output: The run folder.
        listener: Receives progress, in the first process only; None: nothing is reported.

    Raises:
        ValueError: The recipe is invalid (also as CorpusError, CheckpointError or DataError); raised before training.
        TrainingError: The loss or the weights are not finite, the disk is full, a recording has vanished, …; the last
            valid checkpoint is kept, and the same call resumes from it.
    """
    args = training_arguments(recipe, output / CHECKPOINTS)
    main = args.process_index == 0
    listener = listener if listener is not None and main else SilentListener(listener)
    started = time.monotonic()
    checkpoint = _load(recipe)
    splits = list_splits(recipe.data, recipe.seed)
    task = task_class(recipe.task).from_data(recipe.task, splits.train, checkpoint)
    args.metric_for_best_model = task.best_metric
    torch.manual_seed(recipe.seed)
    audio = _starting_point(recipe, task, checkpoint)
    augmentation = _augmentation(recipe, audio.sample_rate)
    with quiet_transformers(), locked_run_folder(output, recipe) if main else nullcontext():
        _barrier(args)
        found = _scan(recipe, splits, task, audio, augmentation, output, args, listener)
        report = list(describe_data(found, task))
        if main:
            check_fingerprint(output, found, task, "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32")
            listener.on_data_report(report)
            write_dropped(found, output)
        trainer, reporting = build_trainer(recipe, task, audio, found, augmentation, args, output, listener)
        resumed_from = _broadcast(newest_checkpoint(output / CHECKPOINTS) if main else None, args)
        try:
            trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
            seconds = time.monotonic() - started
            if reporting.stopped:
                return FinetuneResult({}, trainer.state.global_step, seconds, interrupted=True)
            return _finish(recipe, task, audio, found, trainer, report, output, seconds)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                "a batch does not fit into the GPU's memory: try a smaller training.batch_seconds with a larger "
                "training.gradient_accumulation_steps, or training.gradient_checkpointing=true"
            ) from error
        except (ValueError, OSError) as error:  # invalid recipes are refused before: this happened during training
            raise TrainingError(
                f"{first_line(error)}. Fix that and run the same command again: it resumes from the last checkpoint"
            ) from error


def list_splits(options: DataOptions, seed: int) -> Splits:
    """Return the rows of the recipe's data, split.

    Raises:
        CorpusError: See `list_recordings` and `make_splits`.
        DataError: A recording is in two splits.
    """

    def rows(audio: str | list[str] | None) -> tuple[Row, ...] | None:
        if audio is None:
            return None
        listed = list_recordings(
            audio,
            root=options.root,
            pattern=options.pattern,
            names=options.names,
            columns=options.columns,
            key_prefix="data.",
        ).rows
        return select_channel(listed, options.channel)

    splits = make_splits(
        rows(options.train) or (),
        rows(options.valid),
        rows(options.test),
        valid_share=options.valid_share,
        test_share=options.test_share,
        test_speakers=options.test_speakers,
        by=options.split_by,
        seed=seed,
    )
    check_overlap(splits)
    return splits


def _load(recipe: Recipe) -> Checkpoint | None:
    if recipe.checkpoint is None:
        is_omniasr = str(recipe.config.get("model_type")).startswith("omniasr")
        return random_encoder(recipe.config, recipe.seed) if is_omniasr else None
    if not recipe.training.new_adapters:
        return load_checkpoint(
            recipe.checkpoint,
            revision=recipe.revision,
            language=recipe.language,
            base_model=recipe.base_model,
            with_head=True,
        )
    # Without head and vocabulary, which are of another language.
    found = load_checkpoint(recipe.checkpoint, revision=recipe.revision, base_model=recipe.base_model)
    if not has_adapters(found.model.config):
        raise ValueError(
            f"training.new_adapters needs a checkpoint whose blocks have adapters, and {found.source} has none: use "
            f"an MMS checkpoint such as {EXAMPLE_ID}"
        )
    return dataclasses.replace(found, language=recipe.language)


def _starting_point(recipe: Recipe, task: Task, checkpoint: Checkpoint | None) -> Checkpoint:
    """Return what training starts from: the model with the task's head, and how it expects its waveforms."""
    model = build_model(recipe, task, checkpoint)
    if checkpoint is not None:
        return dataclasses.replace(checkpoint, model=model)
    default = "the family's default"
    return Checkpoint(model, "random weights", Path(), (), (), 16_000, True, WAV2VEC2_EPSILON, default)


def _augmentation(recipe: Recipe, sample_rate: int) -> Augmentation:
    folder = recipe.augmentation.noises
    rows = list_recordings(folder).rows if folder is not None else ()
    read = lru_cache(MAX_CACHED_NOISES)(
        lambda row: read_row(row, sample_rate=sample_rate, max_duration=MAX_SECONDS).waveform
    )
    return Augmentation(recipe.augmentation, sample_rate, [partial(read, row) for row in rows])


def _scan(
    recipe: Recipe,
    splits: Splits,
    task: Task,
    audio: Checkpoint,
    augmentation: Augmentation,
    output: Path,
    args: Any,
    listener: TrainingListener,
) -> DataScan:
    """Read every recording once, in rank 0; the other ranks use the lengths that it wrote."""
    from w2v_attn.encoder.inputs import min_samples

    limits = {"train": recipe.data.max_duration, "valid": MAX_SECONDS, "test": MAX_SECONDS}
    rows = [(f"{split} {row.id}", row, limits[split]) for split, members in named_splits(splits) for row in members]
    if recipe.augmentation.noises is not None:
        noises = list_recordings(recipe.augmentation.noises).rows
        rows += [(f"{NOISE} {row.id}", row, MAX_SECONDS) for row in noises]

    def watch(done: int) -> None:
        listener.on_recordings_read(done, len(rows))
        if listener.interrupted():
            raise KeyboardInterrupt

    with args.main_process_first(desc="scan"):
        lengths = LengthCache(output / LENGTHS, audio.sample_rate)
        found = lengths.of([(row, limit) for _, row, limit in rows], watch)
    scanned = dict(zip((key for key, _, _ in rows), found, strict=True))
    noise = {key: seen for key, seen in scanned.items() if key.startswith(NOISE)}
    broken = [f"{key} {seen.reason}" for key, seen in noise.items() if isinstance(seen, Unreadable)]
    if broken:
        raise DataError(
            f"augmentation.noises has {len(broken)} recordings that cannot be used: {'; '.join(broken[:5])}"
        )
    return scan_splits(
        splits,
        task,
        scanned,
        sample_rate=audio.sample_rate,
        frames_of=lambda n: int(count_frames(audio.model, torch.tensor(n))),
        min_samples=min_samples(encoder_config(audio.model.config)),
        shortest_factor=min(1.0, augmentation.shortest_factor),
    )


def _finish(
    recipe: Recipe,
    task: Task,
    audio: Checkpoint,
    found: DataScan,
    trainer: SpeechTrainer,
    report: list[tuple[str, str]],
    output: Path,
    seconds: float,
) -> FinetuneResult:
    """Evaluate the best checkpoint on the validation and test splits, and write the model folder."""
    args, model = trainer.args, trainer.model
    step = trainer.loaded_step
    heard = frozenset(row.speaker for row in found.splits.train if row.speaker is not None)
    recognizer = task.recognizer(dataclasses.replace(audio, model=model), args.device, recipe.backend)
    metrics: dict[str, dict[str, float]] = {}
    warning = None
    for split, rows in named_splits(found.splits):
        if split == "train" or not rows:
            continue
        predictions = predict(
            recognizer, rows, task, rank=args.process_index, world_size=args.world_size, gather=trainer.gather
        )
        metrics[split] = measure(task, predictions, heard)
        if split == "valid":
            warning = task.warning(predictions)
        if args.process_index == 0:
            model_folder.save_predictions(predictions, task, output / split)
    plain = _exportable(trainer, recipe, task)
    if args.process_index == 0:
        model_folder.save_model(
            plain,
            task,
            output,
            sample_rate=audio.sample_rate,
            do_normalize=audio.do_normalize,
            epsilon=audio.normalize_epsilon,
            language=audio.language,
        )
        model_folder.save_curves(trainer.state.log_history, task, output)
        model_folder.save_card(
            output,
            task,
            config=audio.model.config,
            started_from=audio.source,
            language=audio.language,
            report=report,
            metrics=metrics,
            step=step,
            recipe=as_yaml(recipe),
            version=__version__,
        )
        results = {
            "step": step,
            "metrics": {split: finite(values) for split, values in metrics.items()},
            "seconds": round(seconds, 1),
            "version": __version__,
        }
        model_folder.save_results(results, output)
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)  # the best of them was written as the model
    return FinetuneResult(metrics, step, seconds, interrupted=False, warning=warning)


def _exportable(trainer: SpeechTrainer, recipe: Recipe, task: Task) -> Any:
    """Return the model unwrapped and unpatched, with low-rank updates merged into the weights."""
    if trainer.is_fsdp_enabled:  # the weights are sharded: they are gathered into a new model
        weights = trainer.accelerator.get_state_dict(trainer.model)
        whole = build_model(recipe, task, _load(recipe))
        if trainer.is_world_process_zero():
            whole.load_state_dict(weights)
        return whole
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    restore_frontend(model)
    restore_spec_augment(model)
    restore_layerdrop(model)
    return model


# --------------------------------------------------------------------------------------------- many processes


def _barrier(args: Any) -> None:
    if args.world_size > 1:
        torch.distributed.barrier()


def _broadcast(found: Path | None, args: Any) -> Path | None:
    """Return the path that rank 0 found, in all ranks."""
    if args.world_size == 1:
        return found
    objects = [found]
    torch.distributed.broadcast_object_list(objects, src=0)
    return objects[0]


def destroy_process_group() -> None:
    """Destroy the process group of torchrun: its threads must not run when the interpreter ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # Once a model was wrapped, torch keeps the group and gloo's threads. A thread that frees the tensors of the
        # last collective after the interpreter has ended aborts the process: this gives it time to finish.
        time.sleep(GLOO_SHUTDOWN_SECONDS)
