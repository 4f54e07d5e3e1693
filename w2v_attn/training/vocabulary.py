"""Vocabularies of CTC tasks: a head with the normalization of its texts; new ones are made from texts."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.ctc_head import UNIT, CtcHead, derive_ctc_head
from w2v_attn.checkpoints.piece_tokenizers import make_piece_tokenizer
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.text_normalization import (
    AUTO,
    LOOKALIKES,
    TextNormalizer,
    has_dotted_i,
    make_normalizer,
    punctuation_pattern,
    typographic_map,
)

BLANK, BEGIN, END, UNKNOWN, DELIMITER = "<pad>", "<s>", "</s>", "<unk>", "|"
SPECIAL = (BLANK, BEGIN, END, UNKNOWN)
UNITS = ("characters", "words")


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a CTC head, and how texts become sequences of them.

    Attributes:
        head: The head.
        normalizer: The normalization of texts.
    """

    head: CtcHead
    normalizer: TextNormalizer

    @property
    def symbols(self) -> dict[str, int]:
        """Symbol -> row of the head."""
        return self.head.symbols

    @property
    def blank(self) -> str:
        """The symbol of CTC's blank."""
        return self.head.blank_symbol

    def normalize(self, text: str) -> str:
        """Return the normalized text."""
        return self.normalizer(text)

    def split(self, text: str) -> list[str]:
        """Split a normalized text into symbols, with the delimiter between words."""
        return self.head.split(text)

    def encode(self, text: str) -> list[int]:
        """Return the rows of a normalized text whose symbols are all in the vocabulary."""
        return self.head.encode(text)

    def unknown_symbols(self, text: str) -> Counter[str]:
        """Count the symbols of a normalized text that are not in the vocabulary."""
        return self.head.unknown_symbols(text)


def from_texts(
    texts: Iterable[str],
    *,
    unit: str,
    case: str = AUTO,
    remove_characters: str = AUTO,
    character_map: Mapping[str, str] | None = None,
    language: str | None = None,
    with_pieces: bool = False,
) -> Vocabulary:
    """Build a vocabulary from texts: special symbols first, then those of the texts, sorted.

    Args:
        texts: The texts.
        unit: The kind of symbols, "characters" or "words".
        case: "lower", "upper" or "keep"; "auto" is lower.
        remove_characters: A regular expression, or "auto": punctuation.
        character_map: Character -> replacement, in addition to the typographic ones.
        language: An ISO 639 code, for the case of i; None: it is derived from the texts.
        with_pieces: Whether the tokenizer is OmniASR's, whose delimiter is the space, instead of Wav2Vec2's.

    Raises:
        DataError: All texts are empty, or they contain a special symbol.
    """
    texts = list(texts)
    delimiter = " " if with_pieces else DELIMITER
    case = "lower" if case == AUTO else case
    plain = TextNormalizer(
        case=case,
        dotted_i=case != "keep" and has_dotted_i(language, texts),
        remove_characters=punctuation_pattern(set()) if remove_characters == AUTO else remove_characters,
    )
    # Where the texts have typographic and plain characters, the vocabulary gets the plain ones.
    there = set().union(*map(plain, texts))
    for lookalikes in LOOKALIKES:
        there -= set([c for c in lookalikes if c in there][1:])
    own = typographic_map(there, case)
    normalizer = TextNormalizer(
        case=case,
        dotted_i=plain.dotted_i,
        remove_characters=plain.remove_characters,
        character_map={c: r for c, r in {**own, **(character_map or {})}.items() if c != r},
        delimiter=delimiter,
    )
    normalized = map(normalizer, texts)
    found = set().union(*(text.split() if unit == "words" else text.replace(" ", "") for text in normalized))
    if not found:
        raise DataError("all texts are empty: there is nothing to learn")
    special = (*SPECIAL, delimiter)
    if clash := found & set(special):
        raise DataError(
            f"texts contain {', '.join(sorted(clash))}, which is a special symbol: remove it with "
            "task.remove_characters"
        )
    symbols = {symbol: row for row, symbol in enumerate([*special, *sorted(found)])}
    tokenizer = (_new_piece_tokenizer if with_pieces else _new_tokenizer)(symbols, unit)
    return Vocabulary(derive_ctc_head(tokenizer, rows=len(symbols), config_blank=0, source="the data"), normalizer)


def _new_tokenizer(symbols: dict[str, int], unit: str) -> Any:
    """Return the `Wav2Vec2CTCTokenizer` of a vocabulary with the special symbols of `SPECIAL` and `DELIMITER`."""
    from transformers import Wav2Vec2CTCTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(symbols, ensure_ascii=False, indent=1), encoding="utf-8")
        more: dict[str, Any] = {UNIT: unit} if unit == "words" else {}
        return Wav2Vec2CTCTokenizer(str(path), pad_token=BLANK, word_delimiter_token=DELIMITER, **more)


def _new_piece_tokenizer(symbols: dict[str, int], unit: str) -> Any:
    """Return the `ParakeetTokenizer` of a vocabulary with the special symbols of `SPECIAL` and a space."""
    more: dict[str, Any] = {UNIT: unit} if unit == "words" else {}
    return make_piece_tokenizer(list(symbols), blank=BLANK, unknown=UNKNOWN, begin=BEGIN, end=END, **more)


def from_head(
    head: CtcHead,
    *,
    case: str = AUTO,
    remove_characters: str = AUTO,
    character_map: Mapping[str, str] | None = None,
    language: str | None = None,
    texts: Iterable[str] = (),
) -> Vocabulary:
    """Return the vocabulary of a head; see `make_normalizer`."""
    return Vocabulary(
        head,
        make_normalizer(
            head,
            case=case,
            remove_characters=remove_characters,
            character_map=character_map,
            language=language,
            texts=texts,
        ),
    )
