"""`w2v-attn finetune`: train an encoder on recordings; see conf/finetune.yaml."""

import sys
from pathlib import Path
from typing import Any

from w2v_attn.cli import console, values
from w2v_attn.cli.demo import warn_of_demo_on_paths
from w2v_attn.cli.process import DONE, INTERRUPTED, SOME_FAILED, TERMINATED, Interruption, is_first
from w2v_attn.cli.progress import TrainingProgress
from w2v_attn.training import options
from w2v_attn.training.finetuning import destroy_process_group, finetune
from w2v_attn.training.tasks.task_registry import TASKS
from w2v_attn.training.training_errors import TrainingError


def run(config: Any) -> int:
    """Train a model, show progress, metrics and a summary, and return the exit code."""
    output, recipe = values.folder(config, "output"), recipe_of(config)
    splits = (recipe.data.train, recipe.data.valid, recipe.data.test)
    given = [path for split in splits for path in (split if isinstance(split, list) else [split]) if path is not None]
    warn_of_demo_on_paths(recipe.checkpoint, [Path(str(path)) for path in given])
    with Interruption() as interruption, TrainingProgress(lambda: interruption.code is not None) as listener:
        try:
            done = finetune(recipe, output, listener)
        except TrainingError as error:
            print(f"stopped: {error}", file=sys.stderr)
            return SOME_FAILED
        except KeyboardInterrupt:
            return interruption.code or INTERRUPTED
        finally:
            destroy_process_group()
    if done.interrupted:
        print("interrupted: a checkpoint is saved; the same command resumes from it", file=sys.stderr)
        return interruption.code or TERMINATED
    if not is_first():
        return DONE
    for split, metrics in done.metrics.items():
        console.show(f"On {split}", [(name, f"{value:.4f}") for name, value in metrics.items()])
    if done.warning is not None:
        print(f"warning: {done.warning}", file=sys.stderr)
    rows = [("best step", str(done.step)), ("time", f"{done.seconds:.0f} s"), ("model", str(output))]
    console.show("Fine-tuned", rows)
    return DONE if done.warning is None else SOME_FAILED


def recipe_of(config: Any) -> options.Recipe:
    """Return the configuration as a typed recipe."""
    task = config.task.kind
    if task not in TASKS:
        raise ValueError(f"task.kind must be one of {', '.join(TASKS)}, got {task}")
    plain = values.plain(config)
    del config.task.kind
    model = plain["model"]
    return options.Recipe(
        task=values.section(config, "task", TASKS[task][0]),
        data=values.section(config, "data", options.DataOptions),
        checkpoint=model["checkpoint"],
        revision=model["revision"],
        base_model=values.text_or_none(config, "model.base_model"),
        language=values.language(model),
        config=model.get("config", {}),
        backend=plain["attention"]["backend"],
        device=str(plain["device"]),
        seed=int(values.number(config, "seed", minimum=0)),
        regularization=values.section(config, "regularization", options.RegularizationOptions),
        augmentation=values.section(config, "augmentation", options.AugmentationOptions),
        optimizer=values.section(config, "optimizer", options.OptimizerOptions),
        training=values.section(config, "training", options.TrainingOptions),
    )
