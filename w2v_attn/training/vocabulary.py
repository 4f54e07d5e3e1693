"""Texts -> symbols -> numbers, and the tokenizer that stock transformers reads."""

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
    """symbols: symbol -> number. unit: what a symbol of the text is, "characters" or "words".

    case: what letters become, "lower", "upper" or "keep". remove_characters: what it matches becomes a space.
    blank, delimiter: the symbols of CTC's blank and of the space between words.
    """

    symbols: dict[str, int]
    unit: str
    case: str
    remove_characters: str
    blank: str = BLANK
    delimiter: str = DELIMITER

    def normalize(self, text: str) -> str:
        """The text as it is learned: NFC, in one case, single spaces, without what is removed."""
        return normalize(text, self.case, self.remove_characters)

    def split(self, text: str) -> list[str]:
        """A normalised text as symbols; between words stands the delimiter."""
        words = text.split()
        if self.unit == "characters":
            return list(self.delimiter.join(words))
        return [symbol for word in words for symbol in (word, self.delimiter)][:-1]

    def encode(self, text: str) -> list[int]:
        """The numbers of a normalised text whose symbols are all in the vocabulary."""
        return [self.symbols[symbol] for symbol in self.split(text)]

    def unknown_symbols(self, text: str) -> Counter[str]:
        """The symbols of a normalised text that are not in the vocabulary."""
        return Counter(symbol for symbol in self.split(text) if symbol not in self.symbols or symbol == self.blank)

    def tokenizer(self, folder: Path) -> Any:
        """The tokenizer of stock transformers, with its vocab.json in `folder`."""
        from transformers import Wav2Vec2CTCTokenizer

        path = folder / "vocab.json"
        path.write_text(json.dumps(self.symbols, ensure_ascii=False, indent=1), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(path), pad_token=self.blank, word_delimiter_token=self.delimiter)


def normalize(text: str, case: str, remove_characters: str) -> str:
    """See `Vocabulary.normalize`."""
    text = unicodedata.normalize("NFC", text)
    text = {"lower": text.lower, "upper": text.upper}.get(case, lambda: text)()
    if remove_characters:
        text = re.sub(remove_characters, " ", text)
    return " ".join(text.split())


def from_texts(texts: Iterable[str], *, unit: str, case: str, remove_characters: str) -> Vocabulary:
    """The vocabulary of these texts: special symbols first, then those of the texts, sorted.

    Raises:
        DataError: the texts hold nothing to learn, or a symbol that has a meaning of its own.
    """
    case = "lower" if case == "auto" else case
    plain = Vocabulary({}, unit, case, remove_characters)
    found = {symbol for text in texts for symbol in plain.split(plain.normalize(text))} - {DELIMITER}
    if not found:
        raise DataError("all texts are empty: there is nothing to learn")
    if clash := found & set(SPECIAL):
        raise DataError(
            f"texts hold {', '.join(sorted(clash))}, which stands for something else: take it out with "
            "task.remove_characters"
        )
    return Vocabulary({symbol: i for i, symbol in enumerate([*SPECIAL, *sorted(found)])}, unit, case, remove_characters)


def from_tokenizer(tokenizer: Any, *, case: str, remove_characters: str) -> Vocabulary:
    """The vocabulary of a tokenizer of stock transformers (of characters, or of words made by this package)."""
    symbols = dict(tokenizer.get_vocab())
    special = {*SPECIAL, *tokenizer.all_special_tokens, tokenizer.word_delimiter_token}
    ordinary = [symbol for symbol in symbols if symbol not in special]
    long = sum(len(symbol) > 1 for symbol in ordinary)  # a few may be marks such as [noise]
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
    """The case of a vocabulary's letters, where they have one."""
    lower = any(symbol != symbol.upper() for symbol in symbols)
    upper = any(symbol != symbol.lower() for symbol in symbols)
    return "keep" if lower == upper else "lower" if lower else "upper"
