"""Predictions and metrics on labelled recordings: in training, split over processes, and as a resumable run."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.audio.channels import channel_fingerprint
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RecordingError
from w2v_attn.runs.outcomes import CachedResult, Outcome, cannot_write, write_error
from w2v_attn.runs.output_folder import acquire
from w2v_attn.runs.pipeline import Batch
from w2v_attn.runs.result_log import ResultLog, cached_result, origin_of
from w2v_attn.runs.row_reader import read_row
from w2v_attn.training.metrics import Prediction, finite
from w2v_attn.training.model_folder import PREDICTIONS, prediction_record, save_predictions
from w2v_attn.training.options import CtcOptions
from w2v_attn.training.tasks.classification import Classification
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import DataError, TrainingError
from w2v_attn.transcription.classifier import Classifier
from w2v_attn.transcription.ctc_recognizer import CtcRecognizer
from w2v_attn.transcription.outputs import output_of_record
from w2v_attn.transcription.recognizer import Recognizer
from w2v_attn.transcription.speaker_embedder import SpeakerEmbedder
from w2v_attn.transcription.transcription_run import recognition_run, run_spec
from w2v_attn.whole_files import remove_leftovers, write_whole

METRICS = "metrics.json"
# CTC's loss keeps two float32 for each frame and each symbol of the text. This is 2 GB, for about eleven minutes of
# speech; a longer recording has no loss.
MAX_CTC_CELLS = 1 << 29
FORMAT = "w2v_attn.predictions/1"

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
    answer = recognizer.outputs(waveform)
    found = recognizer.decode(answer)
    loss = _loss(task, row, answer, recognizer)
    return Prediction(row, task.reference(row), task.hypothesis(found), found, loss)


def _loss(task: Task, row: Row, answer: Tensor, recognizer: Recognizer) -> float | None:
    frames = answer.shape[0] if answer.dim() == 2 else 0
    if task.unusable_reason(row, frames or 1) is not None:
        return None
    target = task.target(row)
    if frames * (2 * len(target) + 1) > MAX_CTC_CELLS:
        return None
    labels = torch.tensor([target], dtype=task.target_dtype)
    return task.losses(answer[None], labels, torch.tensor([frames])).item()


def measure(task: Task, predictions: Sequence[Prediction], heard: frozenset[str] = frozenset()) -> dict[str, float]:
    """Return the metrics and the mean loss of all recordings, and the metrics of training speakers and of new speakers.

    Args:
        task: The task.
        predictions: The predictions of all recordings.
        heard: The speakers of the training data; empty: unknown.
    """
    losses = [prediction.loss for prediction in predictions if prediction.loss is not None]
    metrics = {**task.measure(predictions), **task.measure_outputs(predictions)}
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
        DataError: No row has a text (a label), or the head gives neither.
    """
    if isinstance(recognizer, CtcRecognizer):
        return Ctc.from_head(recognizer.head, ctc, rows, recognizer.checkpoint.folder)
    if isinstance(recognizer, Classifier):
        return Classification.from_recognizer(recognizer, rows)
    kind = "embeddings of speakers" if isinstance(recognizer, SpeakerEmbedder) else "labels of frames"
    raise DataError(
        f"{recognizer.checkpoint.source} gives {kind}, which evaluate does not measure; "
        "`w2v-attn transcribe` writes them"
    )


def evaluate_corpus(
    recognizer: Recognizer,
    rows: Sequence[Row],
    task: Task,
    output: Path,
    *,
    max_duration: float,
    interrupted: Callable[[], bool] = lambda: False,
    audio_decoder: AudioDecoderOptions = INLINE,
    about: Mapping[str, object] | None = None,
) -> Iterator[Outcome[Prediction]]:
    """Recognize every row; finally write metrics.json, predictions.jsonl and the task's report into `output`.

    Predictions of an earlier run are kept and not computed again if they are of this configuration, of the current
    source and of the same reference. The files hold the present rows alone; predictions of other rows stay in a hidden
    journal, for a run with them. A row without a text (a label) is a failure.

    Args:
        recognizer: The model with its head.
        rows: The recordings.
        task: The task.
        output: The folder.
        max_duration: Seconds; a longer recording fails.
        interrupted: Returns whether the run shall end after the current recording.
        audio_decoder: Where recordings are decoded, and within which limits.
        about: Further entries of `run.json`.

    Raises:
        ValueError: At the start: the output is in use by another run, belongs to another configuration, or cannot be
            written.
        RunError: The output cannot be written (disk full, missing, read-only).
    """
    fingerprint = {"format": FORMAT, **recognizer.fingerprint(), **channel_fingerprint(audio_decoder.channel)}
    spec = run_spec(
        recognizer,
        rows,
        fingerprint=fingerprint,
        about=about or {},
        prepare=lambda: _remove_leftovers(output),
    )
    predictions: dict[str, Prediction] = {}
    with acquire(output, spec) as folder, ResultLog(output, PREDICTIONS, fingerprint) as log:

        def process(batch: Batch) -> list[Prediction]:
            return [predicted(row, recording) for row, recording in batch]

        def predicted(row: Row, recording: Recording) -> Prediction:
            if not task.is_labelled(row):
                reason = task.unusable_reason(row, frames=recognizer.count_frames(len(recording.waveform)))
                raise RecordingError(reason or "has no text or label to compare with", kind="no_text")
            recognizer.announce(row.id, recording.waveform)
            prediction = predict_one(recognizer, row, task, recording.waveform)
            # As it is read from its line when the run is resumed, so that both give the same metrics.
            found = output_of_record(prediction.found.as_record())
            return replace(prediction, found=found, origin=log.origin(recording))

        def find(row: Row) -> CachedResult[Prediction] | None:
            record = log.find(row) if task.is_labelled(row) else None
            if record is None:
                return None
            found = output_of_record(record)
            prediction = Prediction(
                row, task.reference(row), task.hypothesis(found), found, record["loss"], origin_of(record)
            )
            if prediction_record(prediction, task)["reference"] != record["reference"]:
                return None  # the text in the list was changed
            return cached_result(record, prediction, recognizer.sample_rate)

        def finish(row: Row, recording: Recording, prediction: Prediction) -> Prediction:
            try:
                log.add(row, recording, prediction_record(prediction, task))
            except OSError as error:
                raise write_error(output / PREDICTIONS, error) from error
            return prediction

        reached = 0
        for outcome in recognition_run(
            *(folder, rows, recognizer, process, finish, find),
            max_duration=max_duration,
            interrupted=interrupted,
            audio_decoder=audio_decoder,
        ):
            reached += 1
            if outcome.result is not None:
                predictions[outcome.row.id] = outcome.result
            yield outcome
        if predictions and reached == len(rows):  # metrics of some recordings would be mistaken for those of all
            try:
                found = [predictions[row.id] for row in rows if row.id in predictions]
                log.finish_with(predictions, lambda: _save(task, found, output))
            except OSError as error:
                raise cannot_write(output, error) from error


def _save(task: Task, predictions: Sequence[Prediction], output: Path) -> None:
    """Write the predictions, the task's report, and the metrics. Raises OSError."""
    save_predictions(predictions, task, output)
    write_whole(output / METRICS, json.dumps(finite(measure(task, predictions)), indent=1).encode())


def _remove_leftovers(output: Path) -> None:
    remove_leftovers([output])
