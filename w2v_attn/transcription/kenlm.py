"""KenLM language models: flashlight's reader of them (the extra `lm`), their words, and hashes of their files."""

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
BINARY_START = b"mmap lm"


def load_flashlight() -> tuple[Any, Any, Any]:
    """Return flashlight's modules `decoder`, `dictionary` and `decoder.kenlm`.

    Raises:
        ValueError: the extra is not installed.
    """
    try:
        from flashlight.lib.text import decoder, dictionary  # type: ignore[import-not-found]
        from flashlight.lib.text.decoder import kenlm  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("a language model needs flashlight's decoder: pip install 'w2v_attn[lm]'") from error
    return decoder, dictionary, kenlm


def open_kenlm(path: Path, dictionary: Any) -> Any:
    """Return flashlight's KenLM model of a file, for the words of a dictionary of flashlight.

    Raises:
        ValueError: the file cannot be read as a KenLM model.
    """
    _, _, kenlm = load_flashlight()
    try:
        return kenlm.KenLM(str(path), dictionary)
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as a KenLM model: {error}") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_words(path: Path) -> list[str] | None:
    """Return the words of a KenLM file with the marks <s> and </s>; None of a binary file without its words.

    Raises:
        ValueError: the .arpa is damaged.
    """
    with path.open("rb") as file:
        is_binary = file.read(len(BINARY_START)) == BINARY_START
    words = _binary_words(path) if is_binary else list(_arpa_words(path))
    return None if words is None else [word for word in words if word != UNKNOWN]


def _binary_words(path: Path) -> list[str] | None:
    """Return the words at the end of a binary file, each followed by a zero byte, <unk> first."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = content.rfind(f"{UNKNOWN}\0".encode())
        return None if first < 0 else content[first:].decode(errors="replace").split("\0")[:-1]


def _arpa_words(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        inside = False
        for line in lines:
            if line.startswith("\\"):
                inside = line.strip() == "\\1-grams:"
            elif inside and line.strip():
                word = [*line.split(), "", ""][1]
                if not word:
                    raise ValueError(f"{path} is damaged: expected a score and a word, found {line.strip()!r}")
                yield word
