"""Connectionist temporal classification: text from speech without time alignments.

Source: A. Graves et al., "Connectionist Temporal Classification" (2006); wav2vec 2.0, section 3.3.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.checkpoints.ctc_head import BLANK_KEY, CtcHead, derive_ctc_head, read_ctc_head
from w2v_attn.checkpoints.families import is_omniasr
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.tokenizers import (
    read_tokenizer,
    read_vocabulary,
    restrict_to_language,
    vocabulary_languages,
)
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction, transcription_metrics, utterance_error, write_alignments
from w2v_attn.training.options import CtcOptions
from w2v_attn.training.tasks.task import Task, list_counts
from w2v_attn.training.training_errors import DataError, check_expression
from w2v_attn.training.vocabulary import UNITS, Vocabulary, from_head, from_texts
from w2v_attn.transcription.ctc_recognizer import UNSPACED, CtcRecognizer
from w2v_attn.transcription.outputs import Transcript
from w2v_attn.transcription.recognizer import Recognizer
from w2v_attn.transcription.text_normalization import AUTO, CASES, load_normalizer, unknown_digits

logger = logging.getLogger(__name__)

COLLAPSED = 0.95  # share of empty transcripts of non-empty references at which a warning is given


class Ctc(Task):
    """Speech recognition with CTC.

    Args:
        vocabulary: The symbols, and the normalization of texts.
        keeps_head: Whether the rows are those of the checkpoint's head, so that it is kept.
        head_reason: Why the head is kept or new, for people.
        language: The language of the adapters that are trained, for the tokenizer; None: there are none.
        texts: Texts of the data; without words in them, the best checkpoint is that with the fewest wrong characters.
    """

    name, head, best_metric, pipeline = "ctc", "ForCTC", "wer", "automatic-speech-recognition"

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        keeps_head: bool = False,
        head_reason: str = "",
        language: str | None = None,
        texts: Sequence[str] = (),
    ):
        self.vocabulary, self.keeps_head, self.head_reason = vocabulary, keeps_head, head_reason
        # Without words, the word error rate only says which texts are an exact match.
        if vocabulary.head.is_phonetic:
            self.best_metric = "per"
        elif not vocabulary.head.has_spaces or _has_no_words(texts):
            self.best_metric = "cer"
        self.tokenizer = vocabulary.head.tokenizer
        if language is not None:
            restrict_to_language(self.tokenizer, language)

    @classmethod
    def from_data(cls, options: CtcOptions, train: Sequence[Row], checkpoint: Checkpoint | None) -> "Ctc":
        """Return the task for training rows; the vocabulary is that of the options, the checkpoint or the rows.

        A vocab.json whose symbols have the rows of the checkpoint's head keeps that head. A head that is kept and was
        fine-tuned keeps its normalization of texts, but for what the options say.

        Raises:
            DataError: An option is invalid, or no row has a text.
        """
        _check(options, train, keys="task.")
        language = None if checkpoint is None else checkpoint.language
        own = None
        if checkpoint is not None and type(checkpoint.model).__name__.endswith(cls.head):
            own = read_ctc_head(checkpoint) if options.vocabulary != "data" else None
        texts = [row.text for row in train if row.text is not None]
        how = _normalization_options(options, language)
        if options.vocabulary == "auto" and own is not None:
            head, reason = own, "the checkpoint's, kept"
        elif options.vocabulary in ("auto", "data"):
            pieces = checkpoint is not None and is_omniasr(checkpoint.model.config)
            made = from_texts(texts, unit=options.unit, with_pieces=pieces, **how)
            return cls(made, head_reason=_new_head(checkpoint, cls.head, made), language=language, texts=texts)
        else:
            head = _given_head(Path(options.vocabulary).expanduser(), language)
            if own is not None and head.symbols.items() <= own.symbols.items() and head.blank == own.blank:
                head = own
                reason = f"the checkpoint's, kept: {options.vocabulary} has the same symbols in the same rows"
            else:
                vocabulary = from_head(head, texts=texts, **how)
                reason = _new_head(checkpoint, cls.head, vocabulary)
        for warning in head.warnings:
            logger.warning("CTC head: %s", warning)
        vocabulary = from_head(head, texts=texts, **how)
        if head is own and checkpoint is not None:
            vocabulary = _as_fine_tuned(vocabulary, options, checkpoint.folder)
        if options.unit == "words" and head.unit != "words":
            raise DataError(
                f"task.unit=words, but the vocabulary consists of {head.unit}: task.vocabulary=data creates one from "
                "the texts"
            )
        if options.out_of_vocabulary == "error":
            _check_symbols(vocabulary, train)
        return cls(vocabulary, keeps_head=head is own, head_reason=reason, language=language, texts=texts)

    @classmethod
    def from_head(cls, head: CtcHead, options: CtcOptions, rows: Sequence[Row], folder: Path) -> "Ctc":
        """Return the task that a checkpoint with this head was trained for.

        Args:
            head: The checkpoint's head.
            options: The normalization of texts; "auto" is that of fine-tuning, if the checkpoint's folder names it.
            rows: The labelled rows.
            folder: The folder of the checkpoint.

        Raises:
            DataError: An option is invalid, or no row has a text.
        """
        _check(options, rows)
        texts = [row.text for row in rows if row.text is not None]
        derived = from_head(head, texts=texts, **_normalization_options(options, None))
        return cls(_as_fine_tuned(derived, options, folder), keeps_head=True, texts=texts)

    def config_changes(self) -> dict[str, Any]:
        symbols, head = self.vocabulary.symbols, self.vocabulary.head
        return {
            "vocab_size": head.rows,
            BLANK_KEY: head.blank,
            "pad_token_id": self.tokenizer.pad_token_id if head.has_pieces else head.blank,
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
        return row.text is not None and row.text.strip() != ""

    def unusable_reason(self, row: Row, frames: int) -> str | None:
        if not self.is_labelled(row):
            return "has no text" if row.text is None else "has an empty text"
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
                blank=self.vocabulary.head.blank,
                reduction="none",
                zero_infinity=True,
            )
        return losses / lengths.clamp(min=1)

    def recognizer(self, checkpoint: Checkpoint, device: torch.device, backend: str) -> Recognizer:
        return CtcRecognizer(checkpoint, self.vocabulary.head, device=device, backend=backend)

    def hypothesis(self, found: Transcript) -> str:
        between = self.vocabulary.head.written_delimiter
        text = found.text if between.isspace() or not between else found.text.replace(between, " ")
        return self.vocabulary.normalize(text)

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        metrics = transcription_metrics([p.reference for p in predictions], [p.hypothesis for p in predictions])
        return {"per": metrics.pop("wer"), **metrics} if self.best_metric == "per" else metrics

    def error_of(self, prediction: Prediction) -> float:
        return utterance_error(prediction.reference, prediction.hypothesis)

    def symbols(self) -> list[str]:
        return sorted(self.vocabulary.symbols, key=self.vocabulary.symbols.__getitem__)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.vocabulary.normalizer.save(folder)

    def describe(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        texts = [row.text for row in rows if row.text is not None]
        steps = self.vocabulary.normalizer.steps(texts)
        yield "texts", "; ".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
        yield from self._describe_unknown(texts)
        counts = Counter(symbol for row in rows for symbol in self.vocabulary.split(self.reference(row)))
        yield f"{len(counts)} symbols", list_counts(counts)
        if empty := sum(not self.reference(row) for row in rows):
            yield "empty texts", f"{empty} recordings whose texts have no symbol of the vocabulary"

    def describe_dropped(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        yield from self._describe_unknown([row.text for row in rows if row.text is not None])

    def _describe_unknown(self, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
        outside: Counter[str] = Counter()
        affected = 0
        for text in texts:
            found = self.vocabulary.unknown_symbols(self.vocabulary.normalize(text))
            outside += found
            affected += bool(found)
        if outside:
            yield "outside the vocabulary", f"in {affected:,} of {len(texts):,} texts: {_listed(outside)}"

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


def _check(options: CtcOptions, rows: Sequence[Row], keys: str = "") -> None:
    """Raise DataError for an invalid option, or rows without texts. keys: the beginning of the options' keys."""
    for key, value, choices in (
        ("unit", options.unit, UNITS),
        ("case", options.case, CASES),
        ("out_of_vocabulary", options.out_of_vocabulary, ("error", "drop")),
    ):
        if value not in choices:
            raise DataError(f"{keys}{key} must be one of {', '.join(choices)}, got {value}")
    if options.remove_characters != AUTO:
        check_expression(f"{keys}remove_characters", options.remove_characters)
    if wrong := [key for key in options.character_map if len(key) != 1]:
        raise DataError(f"{keys}character_map replaces single characters, got {', '.join(map(repr, wrong))}")
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
    if not outside:
        return
    if vocabulary.head.is_phonetic:
        raise DataError(
            f"texts have phones that are not in the vocabulary: {_listed(outside)}. Its texts are phones with a space "
            "between each two, such as “h ə l oʊ”: write words as phones first (for example with phonemizer), or drop "
            "such recordings (task.out_of_vocabulary=drop)"
        )
    raise DataError(
        f"texts have symbols that are not in the vocabulary: {_listed(outside)}. Remove them "
        "(task.remove_characters), replace them (task.character_map), drop such recordings "
        "(task.out_of_vocabulary=drop), or make the vocabulary from the data (task.vocabulary=data)"
    )


def _listed(outside: Counter[str]) -> str:
    """Return symbols with their counts and code points; digits are named as such."""
    listed = ", ".join(f"{symbol!r} × {count}{_code_points(symbol)}" for symbol, count in outside.most_common(20))
    digits = unknown_digits(outside)
    return f"{listed} (digits: write numbers as words)" if digits else listed


def _has_no_words(texts: Sequence[str]) -> bool:
    """Return whether texts are of a script without spaces, and have none."""
    return not any(" " in text.strip() for text in texts) and any(UNSPACED.search(text) for text in texts)


def _code_points(symbol: str) -> str:
    """Return the code points of a symbol that is not plain ASCII and of a few characters."""
    if symbol.isascii() or len(symbol) > 3:
        return ""
    return " (" + " ".join(f"U+{ord(character):04X}" for character in symbol) + ")"


def _as_fine_tuned(derived: Vocabulary, options: CtcOptions, folder: Path) -> Vocabulary:
    """Return a vocabulary with the normalization that its head was fine-tuned with, but for what the options say.

    Args:
        derived: The vocabulary with the normalization that follows from the head and the options.
        options: The normalization of texts; "auto" is that of fine-tuning.
        folder: The folder of the checkpoint; without a saved normalization the derived one is returned.
    """
    saved = load_normalizer(folder)
    if saved is None:
        return derived
    given: dict[str, Any] = {"character_map": {**saved.character_map, **options.character_map}}
    if options.case != AUTO or options.language is not None:
        given |= {"case": derived.normalizer.case, "dotted_i": derived.normalizer.dotted_i}
    if options.remove_characters != AUTO:
        given["remove_characters"] = options.remove_characters
    return Vocabulary(derived.head, dataclasses.replace(saved, **given))


def _normalization_options(options: CtcOptions, adapter_language: str | None) -> dict[str, Any]:
    return {
        "case": options.case,
        "remove_characters": options.remove_characters,
        "character_map": options.character_map,
        "language": options.language or adapter_language,
    }


def _new_head(checkpoint: Checkpoint | None, head: str, vocabulary: Vocabulary) -> str:
    """Return why the head is new, and what follows."""
    if checkpoint is None or not type(checkpoint.model).__name__.endswith(head):
        reason = "the checkpoint has none" if checkpoint is not None else "the model starts from random weights"
        return f"new, {vocabulary.head.rows} outputs from random weights: {reason}"
    return (
        f"new, {vocabulary.head.rows} outputs from random weights: the vocabulary is not the checkpoint's, so what its "
        "head has learned is not used"
    )


def _given_head(path: Path, language: str | None) -> CtcHead:
    folder = path.parent if path.name == "vocab.json" else path
    if not (folder / "vocab.json").is_file():
        raise DataError(f"task.vocabulary={path} is not a vocabulary: expected auto, data, or a vocab.json")
    tokenizer = read_tokenizer(folder, language if vocabulary_languages(folder) else None)
    rows = max(read_vocabulary(tokenizer).values()) + 1
    return derive_ctc_head(tokenizer, rows=rows, config_blank=None, source=str(path))
