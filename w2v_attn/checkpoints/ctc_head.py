"""What a CTC head can output: rows, blank, delimiters and symbols, derived from logits, config and tokenizer together.

Transcription, evaluation and fine-tuning read a head here and nowhere else. The three sources often disagree: a config
without the blank, a tokenizer that adds symbols for which the head has no row, a head with more rows than symbols.
"""

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import regex

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.encoder_parts import ctc_head_of
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.piece_tokenizers import (
    decode_pieces,
    has_spaces_in_pieces,
    is_piece_tokenizer,
    space_symbol,
    special_rows,
    split_pieces,
)
from w2v_attn.checkpoints.tokenizers import is_phoneme_tokenizer, read_tokenizer, read_vocabulary, with_special_tokens

# Names of CTC's blank and of unknown symbols in vocabularies whose tokenizer config does not name them.
BLANKS = ("<pad>", "[PAD]", "<blank>", "[blank]", "<blk>", "<ctc_blank>")
UNKNOWNS = ("<unk>", "[UNK]")
SPECIAL = frozenset((*BLANKS, *UNKNOWNS, "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]", "<mask>"))
# The key in tokenizer_config.json with the unit of a vocabulary of words.
UNIT = "symbol_unit"
# The key in config.json with the blank, in families whose padding symbol is another one.
BLANK_KEY = "blank_token_id"
MAX_LISTED = 12


@dataclass(frozen=True)
class CtcHead:
    """The outputs of a CTC head.

    Attributes:
        tokenizer: The transformers tokenizer; it turns rows into text as stock does.
        rows: The number of outputs.
        blank: The row of CTC's blank.
        delimiter: The symbol between words; None: the head has none, as for languages without spaces, or its pieces
            begin with spaces.
        warnings: Disagreements between logits, config and tokenizer that do not prevent its use.
    """

    tokenizer: Any
    rows: int
    blank: int
    delimiter: str | None
    warnings: tuple[str, ...] = ()

    @property
    def is_phonetic(self) -> bool:
        """Whether the symbols are phones, with a space between each two in texts (Wav2Vec2PhonemeCTCTokenizer)."""
        return is_phoneme_tokenizer(self.tokenizer)

    @property
    def has_pieces(self) -> bool:
        """Whether the symbols are pieces that contain spaces, as those of Omnilingual ASR (ParakeetTokenizer)."""
        return is_piece_tokenizer(self.tokenizer)

    @cached_property
    def has_spaces(self) -> bool:
        """Whether the head can write spaces between words."""
        return self.delimiter is not None or (self.has_pieces and has_spaces_in_pieces(self.symbols))

    @property
    def written_delimiter(self) -> str:
        """What texts have between words."""
        return getattr(self.tokenizer, "replace_word_delimiter_char", " ")

    @property
    def upper_cases(self) -> bool:
        """Whether the tokenizer upper-cases texts (do_lower_case), and the vocabulary is not lower case."""
        return bool(getattr(self.tokenizer, "do_lower_case", False)) and self.case != "lower"

    @cached_property
    def symbols(self) -> dict[str, int]:
        """Symbol -> row, of all symbols with a row."""
        return {symbol: row for symbol, row in _numbers(self.tokenizer).items() if row < self.rows}

    @cached_property
    def blank_symbol(self) -> str:
        """The symbol of the blank."""
        return next(symbol for symbol, row in self.symbols.items() if row == self.blank)

    @cached_property
    def ordinary(self) -> list[str]:
        """The symbols that texts consist of, without blank, delimiters and special symbols, in the order of rows."""
        special = {*SPECIAL, *self.tokenizer.all_special_tokens, self.blank_symbol, self.delimiter}
        return [s for s in sorted(self.symbols, key=self.symbols.__getitem__) if s not in special]

    @cached_property
    def case(self) -> str:
        """The case of the letters: "lower" or "upper"; "keep" if there are both or none."""
        if self.is_phonetic:
            return "keep"
        letters = [symbol for symbol in self.ordinary if len(symbol) == 1] or self.ordinary
        lower = any(symbol != symbol.upper() for symbol in letters)
        upper = any(symbol != symbol.lower() for symbol in letters)
        return "keep" if lower == upper else "lower" if lower else "upper"

    @cached_property
    def unit(self) -> str:
        """What a symbol is: "characters", "words", "phones" or "pieces" of words.

        A vocabulary consists of words if more than half of its symbols have two or more letters, counted as grapheme
        clusters: the syllables of Tamil or Hindi have several code points.
        """
        if self.is_phonetic:
            return "phones"
        if (unit := self.tokenizer.init_kwargs.get(UNIT)) is not None:
            return str(unit)
        long = sum(len(regex.findall(r"\X", symbol)) > 1 for symbol in self.ordinary)
        longer = "pieces" if self.has_pieces else "words"
        return longer if long > len(self.ordinary) / 2 else "characters"

    def split(self, text: str) -> list[str]:
        """Split a normalized text into symbols as the tokenizer does, with the delimiter between words.

        Stock's tokenizer drops a space that touches a symbol of several letters ("she thinks" with the symbols sh and
        th becomes sh e th i n k s). Here the delimiter replaces the spaces first, so that it is kept.
        """
        if self.is_phonetic:
            return self._tokens(text)
        words = text.split()
        if self.unit == "words":
            between = [] if self.delimiter is None else [self.delimiter]
            return [symbol for word in words for symbol in (*between, word)][len(between) :]
        if self.has_pieces:
            return [piece for piece, _ in split_pieces(self.tokenizer, text)]
        return self._tokens((self.delimiter or "").join(words))

    def encode(self, text: str) -> list[int]:
        """Return the rows of a normalized text whose symbols all have one."""
        return [self.symbols[symbol] for symbol in self.split(text)]

    def decode(self, path: list[int]) -> tuple[str, list[tuple[str, int, int]]]:
        """Return the text of a path through the frames as stock writes it, and its letters.

        Args:
            path: The row of each frame.

        Returns:
            The text, and (text, first frame, end) of each letter: a symbol without repetitions and blanks, or the
            delimiter.
        """
        if self.has_pieces:
            return decode_pieces(self.tokenizer, self.symbols, path, self.blank)
        decoded = self.tokenizer.decode(path, output_char_offsets=True)
        letters = [(o["char"], int(o["start_offset"]), int(o["end_offset"])) for o in decoded.char_offsets]
        return decoded.text, letters

    def unknown_symbols(self, text: str) -> Counter[str]:
        """Count the symbols of a normalized text that have no row, or are the blank or another special piece."""
        if self.has_pieces and self.unit != "words":
            pieces = split_pieces(self.tokenizer, text)
            return Counter(piece for piece, row in pieces if row is None or row >= self.rows or row == self.blank)
        return Counter(s for s in self.split(text) if self.symbols.get(s, self.blank) == self.blank)

    @cached_property
    def _splitter(self) -> Any:
        """The tokenizer, prepared to split normalized texts."""
        splitter = copy.deepcopy(self.tokenizer)
        splitter.do_phonemize = False  # targets of a phoneme tokenizer are phones already
        splitter.do_lower_case = self.upper_cases
        # Spaces are replaced before; stock's tokenizer would replace them by None where there is no delimiter.
        splitter.word_delimiter_token = self.delimiter or " "
        return splitter

    def _tokens(self, text: str) -> list[str]:
        # The tokenizer treats symbols of several letters in Python; a text without them is split at once.
        if self.is_phonetic or self._several_letters.search(text):
            return self._splitter.tokenize(text)
        return list(text.upper() if self.upper_cases else text)

    @cached_property
    def _several_letters(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        special = [t.content for t in added if len(t.content) > 1 or t.lstrip or t.rstrip or t.single_word]
        return re.compile("|".join(re.escape(token) for token in special) or r"(?!)")


def read_ctc_head(checkpoint: Checkpoint) -> CtcHead:
    """Return the CTC head of a loaded checkpoint.

    Raises:
        CheckpointError: It has no vocabulary, or logits, config and tokenizer contradict each other.
    """
    tokenizer = read_tokenizer(checkpoint.folder, checkpoint.language, source=checkpoint.source)
    config, outputs = checkpoint.model.config, ctc_head_of(checkpoint.model)
    assert outputs is not None
    return derive_ctc_head(
        tokenizer,
        rows=outputs.out_features,
        config_blank=getattr(config, BLANK_KEY, getattr(config, "pad_token_id", None)),
        source=checkpoint.source,
    )


def derive_ctc_head(tokenizer: Any, *, rows: int, config_blank: int | None, source: str) -> CtcHead:
    """Return the head that logits, config and tokenizer describe together.

    The blank is the tokenizer's padding symbol, as in stock's decoding; where the head has no row for it, the row that
    config.json names. A tokenizer of pieces has a padding symbol beside the blank, which config.json names.

    Args:
        tokenizer: A CTC tokenizer of transformers.
        rows: The number of outputs.
        config_blank: blank_token_id of config.json, or pad_token_id where there is no such key.
        source: The checkpoint's name in messages.

    Raises:
        CheckpointError: No row can be the blank, or the vocabulary is not one of numbered symbols.
    """
    if is_piece_tokenizer(tokenizer):
        return _derive_pieces(tokenizer, rows, config_blank, source)
    warnings: list[str] = []
    numbers = _numbers(tokenizer)
    by_row: dict[int, list[str]] = defaultdict(list)
    for symbol, row in numbers.items():
        by_row[row].append(symbol)
    blank = numbers.get(str(tokenizer.pad_token), rows) if tokenizer.pad_token is not None else rows
    if blank >= rows:
        blank = _blank_of_config(tokenizer, by_row, rows, config_blank, source, warnings)
        tokenizer = with_special_tokens(tokenizer, pad=by_row[blank][0], unknown=_first(UNKNOWNS, numbers, rows))
        numbers = _numbers(tokenizer)
    elif config_blank is not None and config_blank != blank:
        warnings.append(
            f"config.json says that the blank is row {config_blank} (pad_token_id), the tokenizer says row {blank} "
            f"(pad_token {tokenizer.pad_token}): the tokenizer's is used, as stock does to decode"
        )
    if others := [symbol for symbol in by_row[blank] if symbol != str(tokenizer.pad_token)]:
        # The tokenizer would write one of them for each blank.
        warnings.append(f"the blank {tokenizer.pad_token} shares row {blank} with {listed(others)}, which is left out")
        tokenizer = with_special_tokens(
            tokenizer, pad=str(tokenizer.pad_token), unknown=_first(UNKNOWNS, numbers, rows), without=others
        )
        numbers = _numbers(tokenizer)
        by_row[blank] = [str(tokenizer.pad_token)]
    delimiter = _delimiter(tokenizer, numbers, rows, warnings)
    head = CtcHead(tokenizer, rows, blank, delimiter)
    warnings += _disagreements(head, numbers, by_row)
    return replace(head, warnings=tuple(warnings))


def _derive_pieces(tokenizer: Any, rows: int, config_blank: int | None, source: str) -> CtcHead:
    """Return the head with a tokenizer of pieces."""
    numbers = _numbers(tokenizer)
    by_row: dict[int, list[str]] = defaultdict(list)
    for symbol, row in numbers.items():
        by_row[row].append(symbol)
    blank = tokenizer.pad_token_id if config_blank is None else config_blank
    if blank is None or not 0 <= blank < rows or not by_row[blank]:
        raise CheckpointError(
            f"{source}: CTC's blank is unknown: {BLANK_KEY} of config.json is {blank}, which is no row of a symbol of "
            f"the tokenizer in a head of {rows} outputs. Set it to the row that the model was trained with as blank, 0 "
            "in Omnilingual ASR"
        )
    symbols = {symbol: row for symbol, row in numbers.items() if row < rows}
    head = CtcHead(tokenizer, rows, blank, space_symbol(symbols))
    warnings = list(_disagreements(head, numbers, by_row))
    if blank not in special_rows(tokenizer):
        warnings.append(
            f"the blank is row {blank} ({by_row[blank][0]}), as config.json says ({BLANK_KEY}), and no special symbol "
            "of the tokenizer: transformers writes it into texts"
        )
    if not head.has_spaces:
        warnings.append("the head has no row for the space: texts have no spaces, and those of references are left out")
    return replace(head, warnings=tuple(warnings))


def describe_ctc_head(head: CtcHead) -> Iterator[tuple[str, str]]:
    """Yield (name, value) rows: outputs, blank, delimiter, symbols and disagreements."""
    delimiter = "no word delimiter" if head.delimiter is None else f"word delimiter {head.delimiter!r}"
    if head.delimiter is None and head.has_spaces:
        delimiter = "pieces with spaces"
    if head.is_phonetic:
        delimiter = "phones with a space between them"
    yield "CTC head", f"{head.rows:,} outputs; blank {head.blank_symbol} (row {head.blank}); {delimiter}"
    letters = {"lower": "lower case", "upper": "upper case", "keep": "both cases or none"}[head.case]
    yield "symbols", f"{len(head.ordinary):,} {head.unit}, {letters}: {listed(head.ordinary, 60)}"
    for warning in head.warnings:
        yield "disagreement", warning


def listed(symbols: list[str], most: int = MAX_LISTED) -> str:
    """Return symbols separated by spaces; of many only the first."""
    more = f" … and {len(symbols) - most:,} more" if len(symbols) > most else ""
    return " ".join(symbols[:most]) + more


def _numbers(tokenizer: Any) -> dict[str, int]:
    """Return symbol -> row, with symbols that the tokenizer added."""
    return {symbol: tokenizer.convert_tokens_to_ids(symbol) for symbol in read_vocabulary(tokenizer)}


def _first(names: tuple[str, ...], numbers: dict[str, int], rows: int) -> str | None:
    return next((name for name in names if numbers.get(name, rows) < rows), None)


def _blank_of_config(
    tokenizer: Any,
    by_row: dict[int, list[str]],
    rows: int,
    config_blank: int | None,
    source: str,
    warnings: list[str],
) -> int:
    """Return the blank of a head that has no row for the tokenizer's padding symbol."""
    named = f"the tokenizer's blank {tokenizer.pad_token} has no row in the head of {rows} outputs"
    if tokenizer.pad_token is None:
        named = "the tokenizer names no blank (pad_token)"
    usual = _first(BLANKS, {symbols[0]: row for row, symbols in by_row.items()}, rows)
    usual_row = next((row for row, symbols in by_row.items() if symbols[0] == usual), None)
    if config_blank is not None and 0 <= config_blank < rows and by_row[config_blank]:
        symbol = by_row[config_blank][0]
        # Row 0 is the default of transformers: a letter in it was hardly meant.
        is_default = config_blank == 0 and len(symbol) == 1 and symbol.isalnum()
        is_delimiter = symbol in ("|", " ", tokenizer.init_kwargs.get("word_delimiter_token"))
        is_plausible = usual_row in (None, config_blank) and not is_default and not is_delimiter
        if is_plausible or symbol in SPECIAL:
            warnings.append(f"{named}: the blank is row {config_blank} ({symbol}), as config.json says (pad_token_id)")
            return config_blank
    if usual_row is not None:
        warnings.append(f"{named}, and config.json's pad_token_id is {config_blank}: the blank is {usual}, by its name")
        return usual_row
    raise CheckpointError(
        f"{source}: CTC's blank is unknown. {named[0].upper()}{named[1:]}, and pad_token_id of config.json is "
        f'{config_blank}, which is no row of a blank. Set "pad_token" in tokenizer_config.json, or pad_token_id in '
        "config.json, to the symbol that the model was trained with as blank"
    )


def _delimiter(tokenizer: Any, numbers: dict[str, int], rows: int, warnings: list[str]) -> str | None:
    if is_phoneme_tokenizer(tokenizer):
        return None
    delimiter = tokenizer.init_kwargs.get("word_delimiter_token", "|")
    delimiter = None if delimiter is None else str(delimiter)
    if delimiter is None or numbers.get(delimiter, rows) < rows:
        return delimiter
    if numbers.get(" ", rows) < rows:  # the space itself is a symbol
        return " "
    warnings.append(
        f"the head has no row for the word delimiter {delimiter}: texts have no spaces, and those of references are "
        "left out"
    )
    return None


def _disagreements(head: CtcHead, numbers: dict[str, int], by_row: dict[int, list[str]]) -> Iterator[str]:
    """Yield what is inconsistent between the vocabulary and the rows of the head."""
    special = {*SPECIAL, *head.tokenizer.all_special_tokens, head.tokenizer.init_kwargs.get("word_delimiter_token")}
    beyond = [symbol for symbol, row in numbers.items() if row >= head.rows and symbol not in special]
    if beyond:
        yield (
            f"{len(beyond)} symbols of the vocabulary have no row in the head of {head.rows} outputs, so that it "
            f"cannot output them: {listed(beyond)}"
        )
    unnamed = [str(row) for row in range(head.rows) if not by_row[row]]
    if unnamed:
        written = "left out of texts" if head.has_pieces else f"written as {head.tokenizer.unk_token}"
        yield (
            f"{len(unnamed)} of {head.rows} outputs of the head have no symbol, and are {written}: rows "
            f"{listed(unnamed)}"
        )
    for row, symbols in sorted(by_row.items()):
        if len(symbols) > 1 and row < head.rows:
            yield f"several symbols have row {row}: {listed(symbols)}"
    if getattr(head.tokenizer, "do_lower_case", False) and not head.upper_cases:
        yield "the tokenizer upper-cases texts (do_lower_case), but the vocabulary is lower case: they are not"
