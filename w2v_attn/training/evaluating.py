"""The evaluation run: labelled rows -> predictions -> metrics, and the files that show where a model is wrong."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.pipeline import ONE_BY_ONE, Batch, run_corpus
from w2v_attn.training.errors import DataError
from w2v_attn.training.evaluation import measure, predict_one
from w2v_attn.training.model_folder import save_predictions
from w2v_attn.training.options import ClassificationOptions, CtcOptions
from w2v_attn.training.predictions import Prediction
from w2v_attn.training.tasks.classification import Classification
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.training.tasks.task import Task
from w2v_attn.transcription.recognizer import CtcRecognizer, Recognizer

METRICS = "metrics.json"


def task_of(recognizer: Recognizer, rows: Sequence[Row], ctc: CtcOptions) -> Task:
    """The task that a checkpoint was trained for, on these rows. ctc: how texts are brought into its symbols.

    Raises:
        DataError: no row has a text (a label).
    """
    if isinstance(recognizer, CtcRecognizer):
        return Ctc.of_checkpoint(recognizer.tokenizer, ctc, rows)
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
    """Recognises every row; at the end writes metrics.json, predictions.jsonl and what the task draws into `output`.

    See `runs.run` for outcomes, failures and interruption; a row without a text (a label) is a failure.

    Raises:
        RunError: the output cannot be written (disk full, gone, read-only).
    """

    def process(batch: Batch) -> list[Prediction]:
        return [predicted(row, recording) for row, recording in batch]

    def predicted(row: Row, recording: Recording) -> Prediction:
        if not task.is_labelled(row):
            raise DataError("has nothing to compare with: no text or label")
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
    if predictions and reached == len(rows):  # metrics of a part would be taken for those of all
        try:
            save_predictions(predictions, task, output)
            temporary = output / f".{METRICS}"
            temporary.write_text(json.dumps(measure(task, predictions), indent=1))
            os.replace(temporary, output / METRICS)
        except OSError as error:
            raise RunError(f"cannot write {output}: {error.strerror or error}") from error
