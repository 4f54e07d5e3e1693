"""Predictions and metrics on labelled recordings: in training, split over processes, and as a resumable run."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RecordingError, RunError
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.pipeline import ONE_BY_ONE, Batch, run_corpus
from w2v_attn.runs.row_reader import read_row
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.model_folder import save_predictions
from w2v_attn.training.options import ClassificationOptions, CtcOptions
from w2v_attn.training.tasks.classification import Classification
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import DataError, TrainingError
from w2v_attn.transcription.ctc_recognizer import CtcRecognizer
from w2v_attn.transcription.recognizer import Recognizer
from w2v_attn.whole_files import write_whole

METRICS = "metrics.json"

GatherObjects = Callable[[list[Any]], list[Any]]


def predict(
    recognizer: Recognizer,
    rows: Sequence[Row],
    task: Task,
    *,
    rank: int = 0,
    world_size: int = 1,
    gather: GatherObjects | None = None,
) -> list[Prediction]:
    """Return the predictions of all rows, in their order, in every process.

    Recordings go through the model one at a time, as they will when the model is used. Every process runs the same
    number of them, some twice if necessary, since a sharded model runs in all processes or in none.

    Args:
        recognizer: The model.
        rows: The recordings.
        task: The task.
        rank: The rank of this process.
        world_size: The number of processes.
        gather: Joins the lists of all processes; None: there is one process.
    """
    recognizer.model.eval()
    rounds = -(-len(rows) // world_size)
    mine = [(min(n * world_size + rank, len(rows) - 1)) for n in range(rounds)]
    # A row may contain a function that reads its bytes, which cannot be pickled; each process has the rows.
    found = [(index, replace(predict_one(recognizer, rows[index], task), row=None)) for index in mine]
    if gather is not None:
        found = gather(found)
    by_index = dict(found)
    return [replace(by_index[index], row=row) for index, row in enumerate(rows)]


def predict_one(recognizer: Recognizer, row: Row, task: Task, waveform: Tensor | None = None) -> Prediction:
    """Return the prediction of one row. waveform: float32 [samples] of its recording; None reads it."""
    if waveform is None:
        try:
            waveform = read_row(row, sample_rate=recognizer.sample_rate).waveform
        except ValueError as error:
            raise TrainingError(f"{row.path} could be read before training, but now it {error}") from error
    answer = recognizer.log_probabilities(waveform)
    found = recognizer.decode(answer)
    loss = _loss(task, row, answer, recognizer)
    return Prediction(row, task.reference(row), task.hypothesis(found), found, loss)


def _loss(task: Task, row: Row, answer: Tensor, recognizer: Recognizer) -> float | None:
    frames = answer.shape[0] if answer.dim() == 2 else 0
    if task.unusable_reason(row, frames or 1) is not None:
        return None
    labels = torch.tensor([task.target(row)], dtype=torch.long)
    return task.losses(answer[None], labels, torch.tensor([frames])).item()


def measure(task: Task, predictions: Sequence[Prediction], heard: frozenset[str] = frozenset()) -> dict[str, float]:
    """Return the metrics and the mean loss of all recordings, and the metrics of training speakers and of new speakers.

    Args:
        task: The task.
        predictions: The predictions of all recordings.
        heard: The speakers of the training data; empty: unknown.
    """
    losses = [prediction.loss for prediction in predictions if prediction.loss is not None]
    metrics = task.measure(predictions)
    if losses:
        metrics["loss"] = sum(losses) / len(losses)
    groups = {
        "heard_speakers": [p for p in predictions if p.row.speaker in heard],
        "new_speakers": [p for p in predictions if p.row.speaker is not None and p.row.speaker not in heard],
    }
    if heard and all(groups.values()):
        for name, members in groups.items():
            metrics.update({f"{key}_{name}": value for key, value in task.measure(members).items()})
    return metrics


def task_of(recognizer: Recognizer, rows: Sequence[Row], ctc: CtcOptions) -> Task:
    """Return the task that a checkpoint was trained for. ctc: how texts are mapped to its symbols.

    Raises:
        DataError: No row has a text (a label).
    """
    if isinstance(recognizer, CtcRecognizer):
        return Ctc.from_head(recognizer.head, ctc, rows, recognizer.checkpoint.folder)
    if not any(row.label is not None for row in rows):
        raise DataError(
            "no recording has a label: expected a folder with a sub-folder for each label, or a column `label`"
        )
    names = recognizer.config.id2label
    return Classification([names[number] for number in range(len(names))], ClassificationOptions())


def evaluate_corpus(
    recognizer: Recognizer,
    rows: Sequence[Row],
    task: Task,
    output: Path,
    *,
    max_duration: float,
    interrupted: Callable[[], bool] = lambda: False,
    audio_decoder: AudioDecoderOptions = INLINE,
) -> Iterator[Outcome[Prediction]]:
    """Recognize every row; finally write metrics.json, predictions.jsonl and the task's report into `output`.

    See `runs.pipeline.run_corpus` for outcomes, failures and interruption; a row without a text (a label) is a failure.

    Raises:
        RunError: The output cannot be written (disk full, missing, read-only).
    """

    def process(batch: Batch) -> list[Prediction]:
        return [predicted(row, recording) for row, recording in batch]

    def predicted(row: Row, recording: Recording) -> Prediction:
        if not task.is_labelled(row):
            raise RecordingError("has no text or label to compare with", kind="no_text")
        return predict_one(recognizer, row, task, recording.waveform)

    def finish(row: Row, recording: Recording, prediction: Prediction) -> Prediction:
        return prediction

    options = {
        "max_duration": max_duration,
        "budget": ONE_BY_ONE,
        "interrupted": interrupted,
        "audio_decoder": audio_decoder,
    }
    predictions: list[Prediction] = []
    reached = 0
    for outcome in run_corpus(rows, output, recognizer, process, finish, **options):
        reached += 1
        if outcome.result is not None:
            predictions.append(outcome.result)
        yield outcome
    if predictions and reached == len(rows):  # metrics of some recordings would be mistaken for those of all
        try:
            save_predictions(predictions, task, output)
            write_whole(output / METRICS, json.dumps(measure(task, predictions), indent=1).encode())
        except OSError as error:
            raise RunError(f"cannot write {output}: {error.strerror or error}") from error
