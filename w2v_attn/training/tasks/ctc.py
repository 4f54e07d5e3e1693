"""Connectionist temporal classification: text from speech without time alignments.

Source: A. Graves et al., "Connectionist Temporal Classification" (2006); wav2vec 2.0, section 3.3.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.tokenizers import read_tokenizer, restrict_to_language, vocabulary_languages
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction, transcription_metrics, utterance_error, write_alignments
from w2v_attn.training.options import CtcOptions
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import DataError, check_expression
from w2v_attn.training.vocabulary import CASES, UNITS, Vocabulary, from_texts, from_tokenizer
from w2v_attn.transcription.ctc_recognizer import CtcRecognizer
from w2v_attn.transcription.outputs import Transcript
from w2v_attn.transcription.recognizer import Recognizer

COLLAPSED = 0.95  # share of empty transcripts of non-empty references at which a warning is given


class Ctc(Task):
    """Speech recognition with CTC.

    Args:
        vocabulary: The symbols.
        tokenizer: The transformers tokenizer of the vocabulary; None: it is created.
        keeps_head: Whether the vocabulary is that of the checkpoint, so that its head is kept.
        language: The language of the adapters that are trained, for the tokenizer; None: there are none.
    """

    name, head, best_metric, pipeline = "ctc", "ForCTC", "wer", "automatic-speech-recognition"

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokenizer: Any = None,
        *,
        keeps_head: bool = False,
        language: str | None = None,
    ):
        self.vocabulary, self.keeps_head = vocabulary, keeps_head
        if tokenizer is None:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer = vocabulary.tokenizer(Path(folder))
        self.tokenizer = tokenizer if language is None else restrict_to_language(tokenizer, language)

    @classmethod
    def from_data(cls, options: CtcOptions, train: Sequence[Row], checkpoint: Checkpoint | None) -> "Ctc":
        """Return the task for training rows; the vocabulary is that of the options, the checkpoint or the rows.

        Raises:
            DataError: An option is invalid, or no row has a text.
        """
        _check(options, train)
        language = None if checkpoint is None else checkpoint.language
        if (
            options.vocabulary == "auto"
            and checkpoint is not None
            and type(checkpoint.model).__name__.endswith(cls.head)
        ):
            tokenizer = read_tokenizer(checkpoint.folder, language, source=checkpoint.source)
            keeps_head = True
        elif options.vocabulary in ("auto", "data"):
            texts = (row.text for row in train if row.text is not None)
            made = from_texts(texts, unit=options.unit, case=options.case, remove_characters=options.remove_characters)
            return cls(made, language=language)
        else:
            tokenizer, keeps_head = _given_tokenizer(Path(options.vocabulary).expanduser(), language), False
        vocabulary = from_tokenizer(tokenizer, case=options.case, remove_characters=options.remove_characters)
        if vocabulary.unit != options.unit:
            raise DataError(
                f"task.unit={options.unit}, but the vocabulary consists of {vocabulary.unit}: task.vocabulary=data "
                "creates one from the texts"
            )
        if options.out_of_vocabulary == "error":
            _check_symbols(vocabulary, train)
        return cls(vocabulary, tokenizer, keeps_head=keeps_head, language=language)

    @classmethod
    def from_checkpoint(cls, tokenizer: Any, options: CtcOptions, rows: Sequence[Row]) -> "Ctc":
        """Return the task that a checkpoint with this tokenizer was trained for.

        Raises:
            DataError: An option is invalid, or no row has a text.
        """
        _check(options, rows)
        return cls(
            from_tokenizer(tokenizer, case=options.case, remove_characters=options.remove_characters),
            tokenizer,
            keeps_head=True,
        )

    def config_changes(self) -> dict[str, Any]:
        symbols = self.vocabulary.symbols
        return {
            "vocab_size": max(symbols.values()) + 1,
            "pad_token_id": symbols[self.vocabulary.blank],
            "bos_token_id": symbols.get("<s>"),
            "eos_token_id": symbols.get("</s>"),
            # The defaults of transformers, sum and infinity, let long and impossible recordings dominate.
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": True,
        }

    def reference(self, row: Row) -> str:
        return self.vocabulary.normalize(row.text or "")

    def target(self, row: Row) -> list[int]:
        return self.vocabulary.encode(self.reference(row))

    def is_labelled(self, row: Row) -> bool:
        return row.text is not None

    def unusable_reason(self, row: Row, frames: int) -> str | None:
        if row.text is None:
            return "has no text"
        text = self.reference(row)
        if outside := self.vocabulary.unknown_symbols(text):
            return f"has symbols outside the vocabulary: {' '.join(sorted(outside))}"
        symbols = self.vocabulary.split(text)
        # Between two equal symbols CTC needs a blank.
        needed = len(symbols) + sum(a == b for a, b in pairwise(symbols))
        if needed > frames:
            return f"has a text of {needed} symbols for {frames} frames: CTC needs a frame for each symbol"
        return None

    def losses(self, logits: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
        real = labels >= 0
        lengths = real.sum(-1)
        log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)
        # cuDNN's kernel does not support infinite losses; transformers disables it, too.
        with torch.backends.cudnn.flags(enabled=False):
            losses = F.ctc_loss(
                log_probabilities,
                labels[real],
                frames,
                lengths,
                blank=self.vocabulary.symbols[self.vocabulary.blank],
                reduction="none",
                zero_infinity=True,
            )
        return losses / lengths.clamp(min=1)

    def recognizer(self, checkpoint: Checkpoint, device: torch.device, backend: str) -> Recognizer:
        return CtcRecognizer(checkpoint, self.tokenizer, device=device, backend=backend)

    def hypothesis(self, found: Transcript) -> str:
        return self.vocabulary.normalize(found.text)

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return transcription_metrics([p.reference for p in predictions], [p.hypothesis for p in predictions])

    def error_of(self, prediction: Prediction) -> float:
        return utterance_error(prediction.reference, prediction.hypothesis)

    def symbols(self) -> list[str]:
        return sorted(self.vocabulary.symbols, key=self.vocabulary.symbols.__getitem__)

    def counts(self, rows: Sequence[Row]) -> Counter[str]:
        return Counter(symbol for row in rows for symbol in self.vocabulary.split(self.reference(row)))

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        spoken = [prediction for prediction in predictions if prediction.reference]
        empty = sum(not prediction.hypothesis for prediction in spoken)
        if not spoken or empty < COLLAPSED * len(spoken):
            return None
        return (
            f"{empty} of {len(spoken)} transcripts are empty: the model predicts blank everywhere. This is normal "
            "early in training; if it lasts, train longer, or with a lower learning rate and a longer warm-up"
        )

    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        write_alignments(predictions, folder)


def _check(options: CtcOptions, rows: Sequence[Row]) -> None:
    for key, value, choices in (
        ("unit", options.unit, UNITS),
        ("case", options.case, CASES),
        ("out_of_vocabulary", options.out_of_vocabulary, ("error", "drop")),
    ):
        if value not in choices:
            raise DataError(f"task.{key} must be one of {', '.join(choices)}, got {value}")
    check_expression("task.remove_characters", options.remove_characters)
    if not any(row.text is not None for row in rows):
        raise DataError(
            "no recording has a text: expected a column `text` in the manifest (or transcripts next to LibriSpeech's "
            "recordings, or data.pattern with a group `text`). For labels use task=classification"
        )


def _check_symbols(vocabulary: Vocabulary, rows: Sequence[Row]) -> None:
    outside: Counter[str] = Counter()
    for row in rows:
        if row.text is not None:
            outside += vocabulary.unknown_symbols(vocabulary.normalize(row.text))
    if outside:
        listed = ", ".join(f"{symbol!r} × {count}" for symbol, count in outside.most_common(20))
        raise DataError(
            f"texts have symbols that are not in the vocabulary: {listed}. Remove them (task.remove_characters), "
            "drop such recordings (task.out_of_vocabulary=drop), or make the vocabulary from the data "
            "(task.vocabulary=data)"
        )


def _given_tokenizer(path: Path, language: str | None) -> Any:
    folder = path.parent if path.name == "vocab.json" else path
    if not (folder / "vocab.json").is_file():
        raise DataError(f"task.vocabulary={path} is not a vocabulary: expected auto, data, or a vocab.json")
    return read_tokenizer(folder, language if vocabulary_languages(folder) else None)
