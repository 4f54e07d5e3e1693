"""How far what was said is from what should have been."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np

from w2v_attn.corpus.rows import Row
from w2v_attn.transcription.recognizer import Label, Transcript


@dataclass(frozen=True)
class Prediction:
    """What a model says of one labelled recording. loss: of this recording alone; None where it has none."""

    row: Row
    reference: str
    hypothesis: str
    found: Transcript | Label
    loss: float | None = None


def transcription_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """wer, cer: errors of all recordings by words (characters) of all references. exact: the share without any error.

    Where a reference is empty, every word that was heard is an error. Where all are, the rates are errors a recording.
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
    """The word error rate of one recording."""
    return _errors(reference, hypothesis)[0] / max(1, len(reference.split()))


def _errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(word, character) errors: substitutions, deletions and insertions."""
    if not reference:
        return len(hypothesis.split()), len(hypothesis)
    words = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    return (
        words.substitutions + words.deletions + words.insertions,
        characters.substitutions + characters.deletions + characters.insertions,
    )


def classification_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """accuracy; error: 1 − accuracy; macro_f1: the mean over labels of the harmonic mean of precision and recall."""
    pairs = list(zip(references, hypotheses, strict=True))
    scores = []
    for label in sorted({*references, *hypotheses}):
        right = sum(r == h == label for r, h in pairs)
        said, true = sum(h == label for _, h in pairs), sum(r == label for r, _ in pairs)
        scores.append(2 * right / (said + true))
    accuracy = sum(r == h for r, h in pairs) / len(pairs)
    return {"accuracy": accuracy, "error": 1 - accuracy, "macro_f1": float(np.mean(scores))}


def write_alignments(predictions: Sequence[Prediction], folder: Path) -> None:
    """`alignments.txt`: reference over hypothesis, word under word, with what is wrong marked; the worst first."""
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
