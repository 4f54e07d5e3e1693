"""A model on labelled recordings: one at a time, as people will use it, shared among processes without duplicates."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.row_reader import read_row
from w2v_attn.training.errors import TrainingError
from w2v_attn.training.predictions import Prediction
from w2v_attn.training.tasks.task import Task
from w2v_attn.transcription.recognizer import Recognizer

GatherObjects = Callable[[list[Any]], list[Any]]


def predict(
    recognizer: Recognizer,
    rows: Sequence[Row],
    task: Task,
    *,
    rank: int = 0,
    processes: int = 1,
    gather: GatherObjects | None = None,
) -> list[Prediction]:
    """What the model says of each row, in their order; every process gets all of them.

    gather: joins the lists of all processes. Each process runs as many recordings as the others, the last ones again
    where they do not divide, for a sharded model runs everywhere or nowhere; what is there twice is left out.
    """
    recognizer.model.eval()
    rounds = -(-len(rows) // processes)
    mine = [(min(n * processes + rank, len(rows) - 1)) for n in range(rounds)]
    # A row may hold what gives its bytes, which cannot be sent: each process has the rows itself.
    found = [(index, replace(predict_one(recognizer, rows[index], task), row=None)) for index in mine]
    if gather is not None:
        found = gather(found)
    by_index = dict(found)
    return [replace(by_index[index], row=row) for index, row in enumerate(rows)]


def predict_one(recognizer: Recognizer, row: Row, task: Task, waveform: Tensor | None = None) -> Prediction:
    """What the model says of one row. waveform: of its recording; None reads it."""
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
    if task.obstacle(row, frames or 1) is not None:
        return None
    labels = torch.tensor([task.target(row)], dtype=torch.long)
    return task.losses(answer[None], labels, torch.tensor([frames])).item()


def measure(task: Task, predictions: Sequence[Prediction], heard: frozenset[str] = frozenset()) -> dict[str, float]:
    """The metrics of all recordings, `loss` among them, and apart those of speakers that training heard and never
    heard.

    heard: the speakers of the training data; empty where they are not known.
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


def by_speaker(task: Task, predictions: Sequence[Prediction]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(speaker, recordings, metrics) of each speaker that is known."""
    speakers: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction.row.speaker is not None:
            speakers[prediction.row.speaker].append(prediction)
    for speaker in sorted(speakers):
        yield speaker, len(speakers[speaker]), task.measure(speakers[speaker])
