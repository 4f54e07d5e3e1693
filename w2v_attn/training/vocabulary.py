"""Vocabularies of CTC: normalized texts, their symbols and numbers, and the tokenizer for transformers."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_attn.training.training_errors import DataError

BLANK, BEGIN, END, UNKNOWN, DELIMITER = "<pad>", "<s>", "</s>", "<unk>", "|"
SPECIAL = (BLANK, BEGIN, END, UNKNOWN, DELIMITER)
UNITS, CASES = ("characters", "words"), ("auto", "lower", "upper", "keep")


@dataclass(frozen=True)
class Vocabulary:
    """A CTC vocabulary and the normalization of its texts.

    Attributes:
        symbols: Symbol -> number.
        unit: What a symbol is, "characters" or "words".
        case: The case of normalized texts, "lower", "upper" or "keep".
        remove_characters: A regular expression; its matches become spaces.
        blank: The symbol of CTC's blank.
        delimiter: The symbol of the space between words.
    """

    symbols: dict[str, int]
    unit: str
    case: str
    remove_characters: str
    blank: str = BLANK
    delimiter: str = DELIMITER

    def normalize(self, text: str) -> str:
        """Return a text in NFC and in one case, with single spaces, without the removed characters."""
        return normalize(text, self.case, self.remove_characters)

    def split(self, text: str) -> list[str]:
        """Split a normalized text into symbols, with the delimiter between words."""
        words = text.split()
        if self.unit == "characters":
            return list(self.delimiter.join(words))
        return [symbol for word in words for symbol in (word, self.delimiter)][:-1]

    def encode(self, text: str) -> list[int]:
        """Return the numbers of a normalized text whose symbols are all in the vocabulary."""
        return [self.symbols[symbol] for symbol in self.split(text)]

    def unknown_symbols(self, text: str) -> Counter[str]:
        """Count the symbols of a normalized text that are not in the vocabulary."""
        return Counter(symbol for symbol in self.split(text) if symbol not in self.symbols or symbol == self.blank)

    def tokenizer(self, folder: Path) -> Any:
        """Return the `Wav2Vec2CTCTokenizer` of the vocabulary; its vocab.json is written into `folder`."""
        from transformers import Wav2Vec2CTCTokenizer

        path = folder / "vocab.json"
        path.write_text(json.dumps(self.symbols, ensure_ascii=False, indent=1), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(path), pad_token=self.blank, word_delimiter_token=self.delimiter)


def normalize(text: str, case: str, remove_characters: str) -> str:
    """Return a text in NFC, in one case, with single spaces; matches of `remove_characters` become spaces."""
    text = unicodedata.normalize("NFC", text)
    text = {"lower": text.lower, "upper": text.upper}.get(case, lambda: text)()
    if remove_characters:
        text = re.sub(remove_characters, " ", text)
    return " ".join(text.split())


def from_texts(texts: Iterable[str], *, unit: str, case: str, remove_characters: str) -> Vocabulary:
    """Build a vocabulary from texts: special symbols first, then those of the texts, sorted.

    Raises:
        DataError: All texts are empty, or they contain a special symbol.
    """
    case = "lower" if case == "auto" else case
    plain = Vocabulary({}, unit, case, remove_characters)
    found = {symbol for text in texts for symbol in plain.split(plain.normalize(text))} - {DELIMITER}
    if not found:
        raise DataError("all texts are empty: there is nothing to learn")
    if clash := found & set(SPECIAL):
        raise DataError(
            f"texts contain {', '.join(sorted(clash))}, which is a special symbol: remove it with "
            "task.remove_characters"
        )
    return Vocabulary({symbol: i for i, symbol in enumerate([*SPECIAL, *sorted(found)])}, unit, case, remove_characters)


def from_tokenizer(tokenizer: Any, *, case: str, remove_characters: str) -> Vocabulary:
    """Build the vocabulary of a CTC tokenizer of transformers (characters, or words as this package writes them)."""
    symbols = dict(tokenizer.get_vocab())
    special = {*SPECIAL, *tokenizer.all_special_tokens, tokenizer.word_delimiter_token}
    ordinary = [symbol for symbol in symbols if symbol not in special]
    long = sum(len(symbol) > 1 for symbol in ordinary)  # a few may be tags such as [noise]
    unit = "words" if long > len(ordinary) / 2 else "characters"
    return Vocabulary(
        symbols,
        unit,
        _case_of(ordinary) if case == "auto" else case,
        remove_characters,
        blank=tokenizer.pad_token,
        delimiter=tokenizer.word_delimiter_token,
    )


def _case_of(symbols: Sequence[str]) -> str:
    """Return the case of all letters of a vocabulary, or "keep" if they have both or none."""
    lower = any(symbol != symbol.upper() for symbol in symbols)
    upper = any(symbol != symbol.lower() for symbol in symbols)
    return "keep" if lower == upper else "lower" if lower else "upper"
