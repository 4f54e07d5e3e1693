"""`w2v-attn evaluate`: measure the errors of a checkpoint on labelled recordings; see conf/evaluate.yaml."""

from dataclasses import replace
from functools import partial
from typing import Any

from w2v_attn.checkpoints.classification_heads import REGRESSION
from w2v_attn.cli import console, corpus_run, values
from w2v_attn.cli.demo import warn_of_demo
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Corpus, CorpusError
from w2v_attn.patching.replace import backend_in_use
from w2v_attn.training.evaluation import evaluate_corpus, measure, task_of
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.options import CtcOptions
from w2v_attn.transcription.classifier import Classifier
from w2v_attn.transcription.load_recognizer import load_recognizer
from w2v_attn.transcription.recognizer import Recognizer


def run(config: Any) -> int:
    """Evaluate a checkpoint, show progress, the worst errors and a summary, and return the exit code."""
    output, limits = values.folder(config, "output"), values.limits(config)
    corpus = _labelled(config)
    warn_of_demo(str(config.model.checkpoint), corpus.rows)
    recognizer = load_recognizer(values.text(config, "model.checkpoint"), **values.recognizer_options(config))
    corpus = _with_values(config, corpus, recognizer)
    task = task_of(
        recognizer,
        corpus.rows,
        CtcOptions(
            case=str(config.case),
            language=values.text_or_none(config, "language"),
            character_map={str(key): str(value) for key, value in (config.character_map or {}).items()},
            remove_characters=str(config.remove_characters or ""),
        ),
    )
    predictions: list[Prediction] = []
    about = corpus_run.describe_request(config)
    start = partial(evaluate_corpus, recognizer, corpus.rows, task, output, about=about, **limits)
    finished = corpus_run.watch(corpus, start, lambda _, prediction: predictions.append(prediction))
    rows = [("attention", f"{backend_in_use(recognizer.model)} on {recognizer.device}")]
    rows += task.describe([row for row in corpus.rows if task.is_labelled(row)])
    rows += corpus_run.describe_long_form(recognizer.long_form)
    if predictions:
        wrong = [p for p in sorted(predictions, key=task.error_of, reverse=True) if task.error_of(p) > 0]
        shown = [(p.row.id, p.reference, p.hypothesis) for p in wrong[: corpus_run.MAX_TABLE_ROWS]]
        more = f" (the worst {len(shown)} of {len(wrong)})" if len(wrong) > len(shown) else ""
        if shown:
            console.show(f"Errors{more}", shown, header=("recording", "reference", "hypothesis"))
        rows += [(name, f"{value:.4f}") for name, value in measure(task, predictions).items()]
    return corpus_run.conclude("Evaluated", corpus, finished, output, rows)


def _with_values(config: Any, corpus: Corpus, recognizer: Recognizer) -> Corpus:
    """Return the recordings with the columns of the outputs of a regression as labels, where they have no others."""
    if not isinstance(recognizer, Classifier) or recognizer.problem_type != REGRESSION:
        return corpus
    if any(row.label is not None for row in corpus.rows):
        return corpus
    try:
        return _labelled(config, {"label": recognizer.names})
    except CorpusError:  # there are no such columns: the task says what is missing
        return corpus


def _labelled(config: Any, outputs: dict[str, list[str]] | None = None) -> Corpus:
    """Return the recordings of the requested split, with their texts and labels. outputs: columns of the label."""
    names = {str(key): str(value) for key, value in (config.names or {}).items()}
    columns = {**(values.columns(config) or {}), **(outputs or {})}
    about = {"root": config.root, "pattern": config.pattern, "names": names, "columns": columns}
    corpus = list_recordings(values.sources(config, "audio"), **about)
    if config.split is None:
        return corpus
    # A row that cannot be used may be of this split: it is reported.
    chosen = tuple(row for row in corpus.rows if row.split == config.split or row.unusable_reason is not None)
    if not any(row.split == config.split for row in chosen):
        found = ", ".join(sorted({row.split for row in corpus.rows if row.split is not None})) or "none"
        raise ValueError(f"no recording has the split {config.split}: the splits of {config.audio} are {found}")
    return replace(corpus, rows=chosen)
