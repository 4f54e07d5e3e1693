"""Tokenizers of CTC checkpoints, with one vocabulary or with one per language (MMS)."""

import json
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.adapters import join_languages
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

VOCABULARY, CONFIG = "vocab.json", "tokenizer_config.json"
FILES = (VOCABULARY, CONFIG, "tokenizer.json")


def read_tokenizer(folder: Path, language: str | None = None, *, source: str | None = None) -> Any:
    """Return the `Wav2Vec2CTCTokenizer` of a CTC checkpoint.

    Args:
        folder: The folder of its files.
        language: The language of the vocabulary, if there is one per language; None: the tokenizer's target language.
        source: The checkpoint's name in messages, if it is not the folder.

    Raises:
        CheckpointError: There is no vocabulary, it cannot be read, or there is none for this language.
    """
    from transformers import Wav2Vec2CTCTokenizer

    source = source or str(folder)
    if not any((folder / name).is_file() for name in FILES):
        raise CheckpointError(
            f"{source} has a CTC head but no vocabulary: expected vocab.json next to the weights, or dict.ltr.txt next "
            "to a fairseq file"
        )
    there, language = vocabulary_languages(folder), language or target_language(folder)
    if language is not None:
        _check_language(source, there, language)
    elif there:
        raise CheckpointError(
            f"{source} has a vocabulary for each of several languages, and its tokenizer_config.json selects none: "
            f"name one with model.language=, of {join_languages(there)}"
        )
    try:
        if language is None:
            return Wav2Vec2CTCTokenizer.from_pretrained(str(folder))
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(str(folder), target_lang=language)
        tokenizer.set_target_lang(language)  # drops the multi-character symbols of the saved language
    except Exception as error:  # these files may contain any JSON
        raise CheckpointError(f"the vocabulary of {source} cannot be read: {first_line(error)}") from error
    return tokenizer


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
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    return found if isinstance(found, dict) else {}
