"""Predictions of labelled recordings, and error rates between references and hypotheses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer

from w2v_attn.corpus.rows import Row


@dataclass(frozen=True)
class Prediction:
    """The prediction of one labelled recording.

    Attributes:
        row: The recording.
        reference: Its text, labels or values in one form.
        hypothesis: The predicted ones, in the same form.
        found: The complete output of the recognizer.
        loss: The loss of this recording; None if it cannot be computed.
        origin: What it was computed from, if a resumed run is to keep it; see `runs.result_log`.
    """

    row: Row
    reference: str
    hypothesis: str
    found: Any
    loss: float | None = None
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])


def transcription_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Return word and character error rates, and the shares of exact matches and of empty hypotheses.

    wer, cer: errors of all recordings divided by words (characters) of all references. exact: the share of exact
    matches. If a reference is empty, every recognized word is an error. If all are empty, the rates are errors per
    recording.
    """
    errors = [_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    words, characters = sum(len(r.split()) for r in references), sum(len(r) for r in references)
    return {
        "wer": sum(word for word, _ in errors) / (words or len(references)),
        "cer": sum(character for _, character in errors) / (characters or len(references)),
        "exact": sum(r == h for r, h in zip(references, hypotheses, strict=True)) / len(references),
        "empty": sum(not h for h in hypotheses) / len(references),
    }


def utterance_error(reference: str, hypothesis: str) -> float:
    """Return the word error rate of one recording."""
    return _errors(reference, hypothesis)[0] / max(1, len(reference.split()))


def _errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return (word, character) errors: substitutions, deletions and insertions."""
    if not reference:
        return len(hypothesis.split()), len(hypothesis)
    words = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    return (
        words.substitutions + words.deletions + words.insertions,
        characters.substitutions + characters.deletions + characters.insertions,
    )


def classification_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Return accuracy, error = 1 − accuracy, and macro_f1, the mean over labels of the F1 score."""
    from sklearn.metrics import accuracy_score, f1_score  # its import takes a second, which other tasks need not wait

    accuracy = float(accuracy_score(references, hypotheses))
    macro_f1 = float(f1_score(references, hypotheses, average="macro"))
    return {"accuracy": accuracy, "error": 1 - accuracy, "macro_f1": macro_f1}


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics for a JSON file: those that are not defined are None, since JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def write_alignments(predictions: Sequence[Prediction], folder: Path) -> None:
    """Write `alignments.txt`: references and hypotheses aligned word by word with errors marked, in the given order."""
    lines = []
    for prediction in predictions:
        rate = utterance_error(prediction.reference, prediction.hypothesis)
        lines.append(f"{prediction.row.id}  (word error rate {rate:.0%})")
        if not prediction.reference:
            lines += ["REF: ", f"HYP: {prediction.hypothesis}", ""]
            continue
        aligned = jiwer.visualize_alignment(
            jiwer.process_words(prediction.reference, prediction.hypothesis), show_measures=False, skip_correct=False
        )
        lines += [line for line in aligned.splitlines() if line.startswith(("REF", "HYP", "   ")) and line.strip()]
        lines.append("")
    (folder / "alignments.txt").write_text("\n".join(lines), encoding="utf-8", errors="replace")
