"""The vocabulary of a CTC checkpoint, also one for each of many languages, as MMS has them."""

import json
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.adapters import join_languages
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

VOCABULARY, CONFIG = "vocab.json", "tokenizer_config.json"
FILES = (VOCABULARY, CONFIG, "tokenizer.json")


def read_tokenizer(folder: Path, language: str | None = None, *, source: str | None = None) -> Any:
    """Stock's tokenizer of a CTC checkpoint.

    folder: where its files are. source: the checkpoint's name for messages, where that is not the folder.
    language: whose vocabulary, where there is one for each language; None: the one that the tokenizer names itself.

    Raises:
        CheckpointError: there is no vocabulary, it cannot be read, or there is none of this language.
    """
    from transformers import Wav2Vec2CTCTokenizer

    source = source or str(folder)
    if not any((folder / name).is_file() for name in FILES):
        raise CheckpointError(
            f"{source} has a CTC head but no vocabulary: expected vocab.json beside the weights, or beside "
            "fairseq's dict.ltr.txt"
        )
    there, language = vocabulary_languages(folder), language or target_language(folder)
    if language is not None:
        _check_language(source, there, language)
    elif there:
        raise CheckpointError(
            f"{source} has a vocabulary for each of several languages, and its tokenizer_config.json says none: name "
            f"one with model.language=, of {join_languages(there)}"
        )
    try:
        if language is None:
            return Wav2Vec2CTCTokenizer.from_pretrained(str(folder))
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(str(folder), target_lang=language)
        tokenizer.set_target_lang(language)  # so that no long symbol of the language that was saved stays
    except Exception as error:  # any JSON may stand in these files
        raise CheckpointError(f"the vocabulary of {source} cannot be read: {first_line(error)}") from error
    return tokenizer


def vocabulary_languages(folder: Path) -> list[str]:
    """The languages that a folder has vocabularies of, sorted; none where its one vocabulary is of no named language.

    Raises:
        CheckpointError: it cannot be read.
    """
    vocabulary = _json(folder / VOCABULARY)
    return sorted(name for name, value in vocabulary.items() if isinstance(value, dict))


def target_language(folder: Path) -> str | None:
    """The language that the tokenizer of a folder says the weights are of; None where it names none.

    Raises:
        CheckpointError: its config cannot be read.
    """
    found = _json(folder / CONFIG).get("target_lang")
    return found if isinstance(found, str) and found else None


def restrict_to_language(tokenizer: Any, language: str) -> Any:
    """The tokenizer with its symbols as the only vocabulary there is, that of a language, as adapters want it."""
    tokenizer.vocab = {language: tokenizer.encoder}
    tokenizer.target_lang = tokenizer.init_kwargs["target_lang"] = language
    return tokenizer


def _check_language(source: str, there: list[str], language: str) -> None:
    if not there:
        raise CheckpointError(
            f"{source} has one vocabulary, which does not say whose it is: expected one for each language in "
            f"vocab.json, {language} among them. Where the weights are of that language, leave model.language out"
        )
    if language not in there:
        raise CheckpointError(
            f"{source} has no vocabulary for the language “{language}”, only for {join_languages(there)}"
        )


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none. Raises CheckpointError where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    return found if isinstance(found, dict) else {}
