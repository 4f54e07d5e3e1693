"""`finetune`: a recipe -> a model folder, in the order in which it happens."""

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
from w2v_attn.checkpoints.errors import first_line
from w2v_attn.checkpoints.loading import Checkpoint, load_checkpoint, quiet_transformers
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.corpus.splits import Splits, make_splits
from w2v_attn.runs.row_reader import read_row
from w2v_attn.training import frontend, layerdrop, model_folder, spec_augment
from w2v_attn.training.arguments import training_arguments
from w2v_attn.training.assembly import build_trainer
from w2v_attn.training.augmentation import Augmentation
from w2v_attn.training.checkpoints import newest
from w2v_attn.training.errors import DataError, TrainingError
from w2v_attn.training.evaluation import measure, predict
from w2v_attn.training.models import build_model
from w2v_attn.training.options import DataOptions, Recipe
from w2v_attn.training.preflight import Lengths, Survey, check_overlap, describe, named, survey
from w2v_attn.training.run_folder import CHECKPOINTS, LENGTHS, as_yaml, check_fingerprint, claimed, write_dropped
from w2v_attn.training.tasks.choice import task_class
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.trainer import SpeechTrainer
from w2v_attn.training.watching import Silent, Watcher

# Seconds that a recording may have which is only measured, or noise.
MEASURED = 600.0
# Seconds that threads of the exchange between processes get to end; they need a millisecond.
GLOO_PATIENCE = 0.2
NOISE, KEPT_NOISES = "noise", 256


@dataclass(frozen=True)
class Finetuned:
    """metrics: of each split, at the best checkpoint; empty where the run was interrupted. update: of that checkpoint.

    warning: what is wrong with the model as a whole, where something is.
    """

    metrics: dict[str, dict[str, float]]
    update: int
    seconds: float
    interrupted: bool
    warning: str | None = None


def finetune(recipe: Recipe, output: Path, watcher: Watcher | None = None) -> Finetuned:
    """Trains what the recipe says and leaves a Hugging Face folder in `output`. Called again, it goes on where it was.

    In `output`: the model with its card, curves and results; `valid/` and `test/` with predictions; `recipe.yaml`;
    `tensorboard/`; while it trains `checkpoints/`. Under torchrun every process calls this.

    Raises:
        ValueError: the recipe cannot be (CorpusError, CheckpointError and DataError are ones too), before training.
        TrainingError: the loss or the weights are not finite, the disk is full, a recording has vanished, …; the last
            good checkpoint stays, and the same call goes on.
    """
    args = training_arguments(recipe, output / CHECKPOINTS)
    main = args.process_index == 0
    watcher = watcher if watcher is not None and main else Silent(watcher)
    started = time.monotonic()
    checkpoint = _load(recipe)
    splits = list_splits(recipe.data, recipe.seed)
    task = task_class(recipe.task).from_data(recipe.task, splits.train, checkpoint)
    torch.manual_seed(recipe.seed)
    audio = _start(recipe, task, checkpoint)
    augmentation = _augmentation(recipe, audio.sample_rate)
    with quiet_transformers(), claimed(output, recipe) if main else nullcontext():
        _wait_for_all(args)
        found = _survey(recipe, splits, task, audio, augmentation, output, args, watcher)
        report = list(describe(found, task))
        if main:
            check_fingerprint(output, found, task, "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32")
            watcher.surveyed(report)
            write_dropped(found, output)
        trainer, reporting = build_trainer(recipe, task, audio, found, augmentation, args, output, watcher)
        resumed_from = _agree(newest(output / CHECKPOINTS) if main else None, args)
        try:
            trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
            seconds = time.monotonic() - started
            if reporting.stopped:
                return Finetuned({}, trainer.state.global_step, seconds, interrupted=True)
            return _finish(recipe, task, audio, found, trainer, report, output, seconds)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                "a batch does not fit into the GPU's memory: try a smaller training.batch_seconds with a larger "
                "training.gradient_accumulation_steps, or training.gradient_checkpointing=true"
            ) from error
        except (ValueError, OSError) as error:  # what cannot be is refused before: this came on the way
            raise TrainingError(f"{first_line(error)}. The same command goes on when that is mended") from error


def list_splits(options: DataOptions, seed: int) -> Splits:
    """The rows of the recipe's data, split.

    Raises:
        CorpusError: see `list_recordings` and `make_splits`. DataError: a recording is in two splits.
    """

    def rows(audio: str | None) -> tuple[Row, ...] | None:
        if audio is None:
            return None
        return list_recordings(audio, root=options.root, pattern=options.pattern, names=options.names).rows

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
        return None
    if not recipe.training.new_adapters:
        return load_checkpoint(recipe.checkpoint, revision=recipe.revision, language=recipe.language, with_head=True)
    # Without the head, which is of another language, and its vocabulary.
    found = load_checkpoint(recipe.checkpoint, revision=recipe.revision)
    if not has_adapters(found.model.config):
        raise ValueError(
            f"training.new_adapters needs a checkpoint whose blocks have adapters, and {found.source} has none: name "
            f"an MMS checkpoint such as {EXAMPLE_ID}"
        )
    return dataclasses.replace(found, language=recipe.language)


def _start(recipe: Recipe, task: Task, checkpoint: Checkpoint | None) -> Checkpoint:
    """What training starts from: the model with the task's head, and how it wants its waveforms."""
    model = build_model(recipe, task, checkpoint)
    if checkpoint is not None:
        return dataclasses.replace(checkpoint, model=model)
    return Checkpoint(model, "random weights", Path(), (), (), 16_000, True, "the family's default")


def _augmentation(recipe: Recipe, sample_rate: int) -> Augmentation:
    folder = recipe.augmentation.noises
    rows = list_recordings(folder).rows if folder is not None else ()
    read = lru_cache(KEPT_NOISES)(lambda row: read_row(row, sample_rate=sample_rate, max_duration=MEASURED).waveform)
    return Augmentation(recipe.augmentation, sample_rate, [partial(read, row) for row in rows])


def _survey(
    recipe: Recipe,
    splits: Splits,
    task: Task,
    audio: Checkpoint,
    augmentation: Augmentation,
    output: Path,
    args: Any,
    watcher: Watcher,
) -> Survey:
    """Reads every recording once, in the first process; the others take what it wrote down."""
    from w2v_attn.encoder.inputs import min_samples

    limits = {"train": recipe.data.max_duration, "valid": MEASURED, "test": MEASURED}
    rows = [(f"{split} {row.id}", row, limits[split]) for split, members in named(splits) for row in members]
    if recipe.augmentation.noises is not None:
        noises = list_recordings(recipe.augmentation.noises).rows
        rows += [(f"{NOISE} {row.id}", row, MEASURED) for row in noises]

    def watch(done: int) -> None:
        watcher.reading(done, len(rows))
        if watcher.interrupted():
            raise KeyboardInterrupt

    with args.main_process_first(desc="survey"):
        lengths = Lengths(output / LENGTHS, audio.sample_rate)
        found = lengths.of([(row, limit) for _, row, limit in rows], watch)
    samples = dict(zip((key for key, _, _ in rows), found, strict=True))
    broken = [f"{key} {reason}" for key, reason in samples.items() if key.startswith(NOISE) and isinstance(reason, str)]
    if broken:
        raise DataError(
            f"augmentation.noises has {len(broken)} recordings that cannot be used: {'; '.join(broken[:5])}"
        )
    return survey(
        splits,
        task,
        samples,
        sample_rate=audio.sample_rate,
        frames_of=lambda n: int(audio.model._get_feat_extract_output_lengths(n)),
        min_samples=min_samples(audio.model.config),
        shortest_factor=min(1.0, augmentation.shortest_factor),
    )


def _finish(
    recipe: Recipe,
    task: Task,
    audio: Checkpoint,
    found: Survey,
    trainer: SpeechTrainer,
    report: list[tuple[str, str]],
    output: Path,
    seconds: float,
) -> Finetuned:
    """The best checkpoint, measured on all that was held out, as a folder."""
    args, model = trainer.args, trainer.model
    update = trainer.loaded_update
    heard = frozenset(row.speaker for row in found.splits.train if row.speaker is not None)
    recognizer = task.recognizer(dataclasses.replace(audio, model=model), args.device, recipe.backend)
    metrics: dict[str, dict[str, float]] = {}
    warning = None
    for split, rows in named(found.splits):
        if split == "train" or not rows:
            continue
        predictions = predict(
            recognizer, rows, task, rank=args.process_index, processes=args.world_size, gather=trainer.gather
        )
        metrics[split] = measure(task, predictions, heard)
        if split == "valid":
            warning = task.warning(predictions)
        if args.process_index == 0:
            model_folder.save_predictions(predictions, task, output / split)
    plain = _plain(trainer, recipe, task)
    if args.process_index == 0:
        model_folder.save_model(
            plain,
            task,
            output,
            sample_rate=audio.sample_rate,
            do_normalize=audio.do_normalize,
            language=audio.language,
        )
        model_folder.save_curves(trainer.state.log_history, task, output)
        model_folder.save_card(
            output,
            task,
            started_from=audio.source,
            language=audio.language,
            report=report,
            metrics=metrics,
            update=update,
            recipe=as_yaml(recipe),
            version=__version__,
        )
        results = {"update": update, "metrics": metrics, "seconds": round(seconds, 1), "version": __version__}
        model_folder.save_results(results, output)
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)  # the best of them is the model now
    return Finetuned(metrics, update, seconds, interrupted=False, warning=warning)


def _plain(trainer: SpeechTrainer, recipe: Recipe, task: Task) -> Any:
    """The model as it was built: unwrapped, low-rank updates added to their weights, with stock's masking."""
    if trainer.is_fsdp_enabled:  # the weights lie in pieces: they are put together, into a model of their own
        weights = trainer.accelerator.get_state_dict(trainer.model)
        whole = build_model(recipe, task, _load(recipe))
        if trainer.is_world_process_zero():
            whole.load_state_dict(weights)
        return whole
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    frontend.uninstall(model)
    spec_augment.uninstall(model)
    layerdrop.uninstall(model)
    return model


# --------------------------------------------------------------------------------------------- many processes


def _wait_for_all(args: Any) -> None:
    if args.world_size > 1:
        torch.distributed.barrier()


def _agree(found: Path | None, args: Any) -> Path | None:
    """What the first process found, in all."""
    if args.world_size == 1:
        return found
    objects = [found]
    torch.distributed.broadcast_object_list(objects, src=0)
    return objects[0]


def leave_other_processes() -> None:
    """Ends what torchrun's processes talk through: its threads must not be running when the interpreter ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # Once a model was wrapped, torch keeps the group and gloo's threads. One that drops the tensors of the last
        # exchange while the interpreter ends finds no interpreter, and aborts the process: it gets the time for it now.
        time.sleep(GLOO_PATIENCE)
