"""The output folder of fine-tuning: a model that transformers loads, its card, curves, metrics and predictions."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints import pooled_classifiers
from w2v_attn.checkpoints.adapters import ADAPTER_FILES, save_adapter
from w2v_attn.checkpoints.families import is_omniasr
from w2v_attn.checkpoints.huggingface_folder import quiet_transformers
from w2v_attn.checkpoints.processor_files import feature_extractor_for, processor_for
from w2v_attn.checkpoints.tokenizers import has_vocabulary
from w2v_attn.patching.replace import restore_attention
from w2v_attn.training.learning_curves import plot_curves
from w2v_attn.training.metrics import Prediction, finite
from w2v_attn.training.tasks.task import Task
from w2v_attn.whole_files import write_whole

RESULTS, CURVES, CARD, RECIPE = "results.json", "curves.png", "README.md", "recipe.yaml"
PREDICTIONS = "predictions.jsonl"


def save_model(
    model: Any,
    task: Task,
    folder: Path,
    *,
    sample_rate: int,
    do_normalize: bool,
    epsilon: float,
    language: str | None = None,
) -> None:
    """Write weights (safetensors), config, preprocessor and vocabulary, as transformers reads them.

    The files are written to a temporary sub-folder and then moved one by one, the config last.

    Args:
        model: The trained model.
        task: Its task.
        folder: The output folder.
        sample_rate: Hz.
        do_normalize: Whether waveforms are normalized to mean 0 and variance 1.
        epsilon: What is added to the variance then.
        language: The language of the model's adapters; with a CTC head they are written to a separate file, too.
    """
    temporary = folder / ".unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    config = model.config
    if task.pooling != "mean":
        config.auto_map = {"AutoModelForAudioClassification": f"pooling.{type(restore_attention(model)).__name__}"}
        shutil.copyfile(pooled_classifiers.__file__, temporary / "pooling.py")
    with quiet_transformers():
        restore_attention(model).eval().save_pretrained(temporary)
    if language is not None and task.head == "ForCTC":
        save_adapter(model, language, temporary)
    extractor = feature_extractor_for(config, sample_rate=sample_rate, do_normalize=do_normalize, epsilon=epsilon)
    task.save(temporary)
    if has_vocabulary(temporary):
        processor_for(config, extractor, task.tokenizer).save_pretrained(temporary)  # type: ignore[attr-defined]
    extractor.save_pretrained(temporary)
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
    temporary.rmdir()


def save_predictions(predictions: Sequence[Prediction], task: Task, folder: Path) -> None:
    """Write `predictions.jsonl`, the largest errors first, `speakers.csv`, and the report of the task."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(predictions, key=task.error_of, reverse=True)
    lines = (json.dumps(prediction_record(prediction, task), ensure_ascii=False) + "\n" for prediction in ordered)
    write_whole(folder / PREDICTIONS, "".join(lines).encode(errors="backslashreplace"))
    task.report(ordered, folder)
    speakers = list(_metrics_by_speaker(task, predictions))
    if speakers:
        keys = list(speakers[0][2])
        lines = [",".join(["speaker", "recordings", *keys])]
        lines += [",".join([_cell(s), str(n), *(f"{m[key]:.4f}" for key in keys)]) for s, n, m in speakers]
        (folder / "speakers.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")


def prediction_record(prediction: Prediction, task: Task) -> dict[str, Any]:
    """Return the line of a prediction in `predictions.jsonl`."""
    reference, hypothesis = task.written(prediction)
    return {
        "id": prediction.row.id,
        "path": prediction.row.location,
        "speaker": prediction.row.speaker,
        "reference": reference,
        "hypothesis": hypothesis,
        "error": round(task.error_of(prediction), 4),
        "loss": prediction.loss,
        **prediction.found.as_record(),
        **prediction.origin,
    }


def save_curves(history: Sequence[Mapping[str, float]], task: Task, folder: Path) -> None:
    """Write the learning curves as `curves.png`, and their values as `curves.jsonl`."""
    plot_curves(history, task.best_metric, folder / CURVES)
    (folder / "curves.jsonl").write_text("".join(json.dumps(finite(entry)) + "\n" for entry in history))


def save_results(results: Mapping[str, Any], folder: Path) -> None:
    """Write `results.json` atomically; its existence means that the run is finished."""
    write_whole(folder / RESULTS, json.dumps(results, indent=1, ensure_ascii=False).encode())


def save_card(
    folder: Path,
    task: Task,
    *,
    config: Any,
    started_from: str,
    language: str | None = None,
    report: Iterable[tuple[str, str]],
    metrics: Mapping[str, Mapping[str, float]],
    step: int,
    recipe: str,
    version: str,
) -> None:
    """Write the model card: usage, results, training data and recipe."""
    rows = [
        f"| {split} | {name} | {value:.4f} |" for split, measured in metrics.items() for name, value in measured.items()
    ]
    data = [f"- **{name}**: {value}" for name, value in report]
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task.pipeline}",
        "tags: [speech, w2v_attn]",
        "---",
        "",
        f"# {folder.resolve().name}",
        "",
        f"Fine-tuned from `{started_from}` with w2v_attn {version}. It loads without w2v_attn:",
        "",
        "```python",
        *_usage_lines(folder, task, config),
        "```",
        "",
        *task.card_lines(),
        *_adapter_lines(folder, task, started_from, language),
        "## Results",
        "",
        f"The checkpoint of step {step}, the best on validation. One recording at a time, no language model.",
        "",
        "| data | metric | value |",
        "|---|---|---|",
        *rows,
        "",
        f"![learning curves]({CURVES})",
        "",
        "## Data",
        "",
        *data,
        "",
        "## Recipe",
        "",
        "```yaml",
        recipe.rstrip(),
        "```",
        "",
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8", errors="replace")


def _usage_lines(folder: Path, task: Task, config: Any) -> list[str]:
    """Return lines of Python that use the model without this package."""
    if is_omniasr(config):  # pipelines of transformers 5.24 do not run it
        return [
            "import soundfile",
            "from transformers import AutoModelForCTC, AutoProcessor",
            "",
            f'processor, model = (cls.from_pretrained("{folder.name}") for cls in (AutoProcessor, AutoModelForCTC))',
            'waveform, rate = soundfile.read("recording.wav")  # mono, 16 kHz',
            "symbols = model.eval().generate(**processor(waveform, sampling_rate=rate))",
            "processor.batch_decode(symbols, skip_special_tokens=True)",
        ]
    trust = "" if task.pooling == "mean" else ", trust_remote_code=True"
    return [
        "from transformers import pipeline",
        "",
        f'pipeline("{task.pipeline}", "{folder.name}"{trust})("recording.wav"{task.pipeline_arguments})',
    ]


def _adapter_lines(folder: Path, task: Task, started_from: str, language: str | None) -> list[str]:
    """Return the lines of a card about the adapters of a language."""
    if language is None or task.head != "ForCTC":
        return []
    return [
        f"Its language is `{language}`. `{ADAPTER_FILES[0].format(language)}` contains the adapters and the head of "
        f'that language: `model.load_adapter("{language}")` loads it, in this folder or, if only adapters were '
        f"trained, in that of `{started_from}`.",
        "",
    ]


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n') else text


def _metrics_by_speaker(task: Task, predictions: Sequence[Prediction]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield (speaker, number of recordings, metrics) of each known speaker."""
    speakers: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction.row.speaker is not None:
            speakers[prediction.row.speaker].append(prediction)
    for speaker in sorted(speakers):
        yield speaker, len(speakers[speaker]), task.measure(speakers[speaker])
