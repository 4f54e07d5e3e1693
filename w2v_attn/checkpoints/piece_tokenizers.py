"""CTC tokenizers whose symbols are pieces that contain spaces: `ParakeetTokenizer`, which Omnilingual ASR has.

A piece is a character, or several, and the space is one of them, or the first character of some. Encoding is that of a
SentencePiece model. To decode, stock merges repeated pieces and removes special symbols; CTC's blank is one of those.

Source: transformers, models/parakeet/tokenization_parakeet.py and models/omniasr_ctc/processing_omniasr_ctc.py.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

PIECE_TOKENIZER = "ParakeetTokenizer"
ESCAPED_SPACE = "▁"  # what SentencePiece writes for a space, in vocabularies without plain spaces


def is_piece_tokenizer(tokenizer: Any) -> bool:
    """Return whether the symbols of a tokenizer are pieces that contain spaces."""
    return type(tokenizer).__name__ == PIECE_TOKENIZER


def special_rows(tokenizer: Any) -> set[int]:
    """Return the rows of the symbols that no text contains."""
    added = {row for row, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def space_symbol(symbols: Mapping[str, int]) -> str | None:
    """Return the piece that is a space; None if there is none."""
    return next((symbol for symbol in (" ", ESCAPED_SPACE) if symbol in symbols), None)


def has_spaces_in_pieces(symbols: Mapping[str, int]) -> bool:
    """Return whether pieces contain a space and other characters, as in subword vocabularies."""
    space = _space_in(symbols)
    return any(space in symbol and symbol != space for symbol in symbols)


def split_pieces(tokenizer: Any, text: str) -> list[tuple[str, int | None]]:
    """Return (piece, row) of a text as the tokenizer splits it; the row of an unknown or special piece is None."""
    encoded = tokenizer(text)
    special = special_rows(tokenizer)
    found: list[tuple[str, int | None]] = []
    for piece, row in zip(encoded.tokens(), encoded.input_ids, strict=True):
        if row not in special:
            found.append((piece, row))
        elif row == tokenizer.unk_token_id and piece != tokenizer.unk_token:
            found += [(character, None) for character in piece]  # the tokenizer joins neighbours
        else:
            found.append((piece, None))
    return found


def decode_pieces(
    tokenizer: Any, symbols: Mapping[str, int], path: Sequence[int], blank: int
) -> tuple[str, list[tuple[str, int, int]]]:
    """Return the text of a path through the frames, and (text, first frame, end) of each letter, which may be a space.

    The text is that of stock's `processor.decode(path, skip_special_tokens=True)`.

    Args:
        tokenizer: The tokenizer.
        symbols: Piece -> row, of all pieces with a row.
        path: The row of each frame.
        blank: The row of CTC's blank.
    """
    pieces = {row: piece for piece, row in symbols.items()}
    left_out = special_rows(tokenizer) | {blank}
    space = _space_in(symbols)
    rows: list[int] = []
    letters: list[tuple[str, int, int]] = []
    frame = 0
    for row, run in groupby(path):
        start, frame = frame, frame + len(list(run))
        if row in left_out or row not in pieces:
            continue
        rows.append(row)
        text = pieces[row].replace(space, " ")
        first = text.lstrip(" ")
        if first != text:  # the space before a word is no part of it
            letters.append((" ", start, frame))
        if first:
            letters.append((first, start, frame))
    return tokenizer.decode(rows, skip_special_tokens=True, group_tokens=False), letters


def make_piece_tokenizer(symbols: Sequence[str], *, blank: str, unknown: str, begin: str, end: str, **more: Any) -> Any:
    """Return a new tokenizer of a vocabulary.

    The blank is its padding symbol, so that stock's decoding leaves it out in any case.

    Args:
        symbols: The symbols in the order of their rows, with a space between words and the special symbols.
        blank: CTC's blank.
        unknown: The symbol of unknown characters.
        begin: The symbol of the start of a text.
        end: The symbol of its end.
        **more: Further values for its tokenizer_config.json.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import ParakeetTokenizer

    # All pieces are equally likely: a text becomes as few of them as possible.
    model = models.Unigram([(symbol, -1.0) for symbol in symbols], unk_id=list(symbols).index(unknown))
    tokenizer = Tokenizer(model)
    special = (blank, begin, end, unknown)
    tokenizer.add_tokens([AddedToken(symbol, normalized=False, special=True) for symbol in special])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
    tokenizer.decoder = decoders.Fuse()
    return ParakeetTokenizer(
        tokenizer_object=tokenizer,
        pad_token=blank,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **more,
    )


def _space_in(symbols: Mapping[str, int]) -> str:
    """Return the character that is a space in pieces."""
    return " " if any(" " in symbol for symbol in symbols) else ESCAPED_SPACE
