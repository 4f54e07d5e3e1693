"""Tokenizers of CTC checkpoints, with one vocabulary or with one per language (MMS)."""

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.adapters import join_languages
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.json_object import read_json
from w2v_attn.checkpoints.piece_tokenizers import PIECE_TOKENIZER

VOCABULARY, CONFIG = "vocab.json", "tokenizer_config.json"
FILES = (VOCABULARY, CONFIG, "tokenizer.json")
PHONEME_TOKENIZER = "Wav2Vec2PhonemeCTCTokenizer"
CTC_TOKENIZERS = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")


def read_tokenizer(folder: Path, language: str | None = None, *, source: str | None = None) -> Any:
    """Return the tokenizer of a CTC checkpoint: of characters, of phones (both Wav2Vec2's) or of pieces (Parakeet's).

    That of phones decodes without the package phonemizer. A vocab.json without tokenizer_config.json is sufficient.

    Args:
        folder: The folder of its files.
        language: The language of the vocabulary, if there is one per language; None: the tokenizer's target language.
        source: The checkpoint's name in messages, if it is not the folder.

    Raises:
        CheckpointError: There is no vocabulary, it cannot be read, its tokenizer is of another class, or there is none
            for this language.
    """
    source = source or str(folder)
    if not has_vocabulary(folder):
        raise CheckpointError(
            f"{source} has a CTC head but no vocabulary: expected vocab.json or tokenizer.json next to the weights, "
            "dict.ltr.txt next to a fairseq file, or omniASR_tokenizer….model next to a fairseq2 file"
        )
    there, language = vocabulary_languages(folder), language or target_language(folder)
    if language is not None:
        _check_language(source, there, language)
    elif there:
        raise CheckpointError(
            f"{source} has a vocabulary for each of several languages, and its tokenizer_config.json selects none: "
            f"name one with model.language=, of {join_languages(there)}"
        )
    _check_vocabulary(source, _json(folder / VOCABULARY), language)
    tokenizer_class = _tokenizer_class(source, folder)
    try:
        if language is None:
            return tokenizer_class.from_pretrained(str(folder))
        tokenizer = tokenizer_class.from_pretrained(str(folder), target_lang=language)
        tokenizer.set_target_lang(language)  # drops the multi-character symbols of the saved language
    except Exception as error:  # these files may contain any JSON
        raise CheckpointError(f"the vocabulary of {source} cannot be read: {first_line(error)}") from error
    return tokenizer


def has_vocabulary(folder: Path) -> bool:
    """Return whether a folder has tokenizer files."""
    return any((folder / name).is_file() for name in FILES)


def is_phoneme_tokenizer(tokenizer: Any) -> bool:
    """Return whether the symbols of a tokenizer are phones."""
    return type(tokenizer).__name__ == PHONEME_TOKENIZER


def read_vocabulary(tokenizer: Any) -> dict[str, int]:
    """Return symbol -> number of the tokenizer's current language, with the symbols that it added."""
    return dict(tokenizer.get_vocab())


def with_special_tokens(tokenizer: Any, *, pad: str, unknown: str | None, without: Collection[str] = ()) -> Any:
    """Return a tokenizer of the same vocabulary with this padding symbol and, unless None, this unknown symbol.

    Symbols of the start and the end of sentences that the vocabulary lacks are dropped, and so are those in `without`.
    """
    own = {symbol: number for symbol, number in tokenizer.encoder.items() if symbol not in without}
    options = {
        name: getattr(tokenizer, name) if getattr(tokenizer, name) in own else None
        for name in ("bos_token", "eos_token")
    }
    options |= {"pad_token": pad, "unk_token": unknown or tokenizer.unk_token}
    names = (
        "symbol_unit",
        "word_delimiter_token",
        "replace_word_delimiter_char",
        "do_lower_case",
        "phone_delimiter_token",
    )
    names += ("do_phonemize", "phonemizer_lang", "phonemizer_backend", "clean_up_tokenization_spaces")
    options |= {name: tokenizer.init_kwargs[name] for name in names if name in tokenizer.init_kwargs}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / VOCABULARY
        path.write_text(json.dumps(own, ensure_ascii=False), encoding="utf-8")
        changed = type(tokenizer)(str(path), **options)
    return (
        changed
        if tokenizer.init_kwargs.get("target_lang") is None
        else restrict_to_language(changed, tokenizer.init_kwargs["target_lang"])
    )


def vocabulary_languages(folder: Path) -> list[str]:
    """Return the languages of the vocabularies in a folder, sorted; empty if it has one vocabulary without a language.

    Raises:
        CheckpointError: The vocabulary cannot be read.
    """
    vocabulary = _json(folder / VOCABULARY)
    return sorted(name for name, value in vocabulary.items() if isinstance(value, dict))


def target_language(folder: Path) -> str | None:
    """Return the language of the weights according to the tokenizer config of a folder; None if it names none.

    Raises:
        CheckpointError: The tokenizer config cannot be read.
    """
    found = _json(folder / CONFIG).get("target_lang")
    return found if isinstance(found, str) and found else None


def restrict_to_language(tokenizer: Any, language: str) -> Any:
    """Make the symbols of a tokenizer the vocabulary of one language, in place, as adapters require; return it."""
    tokenizer.vocab = {language: tokenizer.encoder}
    tokenizer.target_lang = tokenizer.init_kwargs["target_lang"] = language
    return tokenizer


def _tokenizer_class(source: str, folder: Path) -> Any:
    import transformers

    name = _json(folder / CONFIG).get("tokenizer_class")
    if name == PHONEME_TOKENIZER:
        return transformers.Wav2Vec2PhonemeCTCTokenizer
    if name is None or name in CTC_TOKENIZERS:
        return transformers.Wav2Vec2CTCTokenizer
    if name == PIECE_TOKENIZER:
        return transformers.ParakeetTokenizer
    raise CheckpointError(
        f"the tokenizer of {source} is a {name}, which is not supported: expected one of "
        f"{', '.join(CTC_TOKENIZERS)}, {PHONEME_TOKENIZER}, {PIECE_TOKENIZER} as tokenizer_class in "
        "tokenizer_config.json, or a vocab.json alone"
    )


def _check_vocabulary(source: str, vocabulary: dict[str, Any], language: str | None) -> None:
    """Raise CheckpointError unless a vocabulary maps symbols to different numbers from 0."""
    numbers = vocabulary if language is None else vocabulary.get(language, vocabulary)
    wrong = {
        symbol: number
        for symbol, number in numbers.items()
        if not isinstance(number, int) or isinstance(number, bool) or number < 0
    }
    if wrong:
        symbol, number = next(iter(wrong.items()))
        raise CheckpointError(
            f"the vocabulary of {source} is not valid: expected an output number for each symbol, found {symbol!r}: "
            f"{str(number)[:40]!r}"
        )


def _check_language(source: str, there: list[str], language: str) -> None:
    if not there:
        raise CheckpointError(
            f"{source} has one vocabulary, which does not name its language: expected one for each language in "
            f"vocab.json, {language} among them. If the weights are for that language, leave model.language out"
        )
    if language not in there:
        raise CheckpointError(
            f"{source} has no vocabulary for the language “{language}”, only for {join_languages(there)}"
        )


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no such file. Raises CheckpointError."""
    return read_json(path) if path.is_file() else {}
