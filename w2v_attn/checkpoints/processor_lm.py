"""The language model of a processor: what `Wav2Vec2ProcessorWithLM` saves beside a CTC checkpoint.

Source: the folder layout of pyctcdecode 0.5, which transformers' processor writes and reads.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.ctc_head import CtcHead, listed
from w2v_attn.checkpoints.hub import find_file, list_files
from w2v_attn.checkpoints.json_object import read_json

ALPHABET, FOLDER = "alphabet.json", "language_model"
ATTRIBUTES, UNIGRAMS = f"{FOLDER}/attrs.json", f"{FOLDER}/unigrams.txt"
KENLM_SUFFIXES = (".arpa", ".bin", ".binary")
UNKNOWN_LABEL = "⁇"
NUMBERS, FLAG = ("alpha", "beta", "unk_score_offset"), "score_boundary"


@dataclass(frozen=True, kw_only=True)
class ProcessorLm:
    """A KenLM language model with the weights that it is used with.

    Attributes:
        lm: The KenLM file.
        unigrams: A text file with one known word per line.
        labels: What each output of the CTC head adds to a text: "" for the blank, " " for the word delimiter.
        alpha: Factor of the natural logarithm of the language model's probability.
        beta: Added for each word.
        unk_score_offset: Added to log10 of the probability of a word that is not known.
        score_boundary: Whether the beginning and the end of the text are scored as those of a sentence.
    """

    lm: Path
    unigrams: Path
    labels: tuple[str, ...]
    alpha: float
    beta: float
    unk_score_offset: float
    score_boundary: bool


def has_processor_lm(folder: Path) -> bool:
    """Return whether the processor in a folder has a language model; its KenLM file may still be on the hub."""
    return (folder / FOLDER).is_dir()


def read_processor_lm(source: str, folder: Path) -> ProcessorLm:
    """Return the language model of a checkpoint's processor; of a hub id its KenLM file is downloaded if necessary.

    Args:
        source: The checkpoint, as the user named it.
        folder: The folder of its config files.

    Raises:
        CheckpointError: A file of it is missing or not valid.
    """
    labels = _read_labels(_file(source, folder, ALPHABET))
    attributes = _read_attributes(_file(source, folder, ATTRIBUTES))
    unigrams = _file(source, folder, UNIGRAMS)
    return ProcessorLm(lm=_kenlm_file(source, folder), unigrams=unigrams, labels=labels, **attributes)


def check_labels(lm: ProcessorLm, head: CtcHead, source: str) -> Iterator[str]:
    """Yield disagreements between alphabet.json and a CTC head that do not matter.

    Raises:
        CheckpointError: An output of the head has another label, or none.
    """
    missing, more = head.rows - len(lm.labels), lm.labels[head.rows :]
    if missing > 0:
        raise CheckpointError(
            f"{ALPHABET} of {source} has {len(lm.labels)} labels, the CTC head has {head.rows} outputs: the language "
            "model belongs to another checkpoint. decoder=greedy works without it"
        )
    wrong = []
    for symbol, row in sorted(head.symbols.items(), key=lambda item: item[1]):
        special = "" if row == head.blank else " " if symbol == head.delimiter else None
        unknown = [UNKNOWN_LABEL] if symbol == head.tokenizer.unk_token else []
        if lm.labels[row] not in ([symbol, *unknown] if special is None else [special]):
            wrong.append(f"{lm.labels[row]!r} instead of {symbol if special is None else special!r} (row {row})")
    if wrong:
        raise CheckpointError(
            f"{ALPHABET} of {source} does not agree with its vocabulary in {len(wrong)} of {head.rows} outputs: "
            f"{listed(wrong)}. Write it anew from the vocabulary, or use decoder=greedy"
        )
    if more:
        yield f"{ALPHABET} names {len(more)} symbols without an output, which are never found: {listed(list(more))}"


def describe_processor_lm(folder: Path) -> str:
    """Return the files and the weights of a processor's language model, or what is wrong with them."""
    try:
        weights = _read_attributes(folder / ATTRIBUTES)
    except CheckpointError as error:
        return f"cannot be used: {error}"
    names = ", ".join(path.name for path in _kenlm_files(folder)) or "on the hub"
    return f"KenLM ({names}), {', '.join(f'{name} {value:g}' for name, value in weights.items())}"


def copy_processor_lm(source: str, folder: Path, output: Path) -> None:
    """Copy the language model of a checkpoint's processor, if it has one, so that the copy can be used as it is.

    Raises:
        CheckpointError: A file of it is missing or not valid.
    """
    if not has_processor_lm(folder):
        return
    lm = read_processor_lm(source, folder)
    (output / FOLDER).mkdir()
    for path in (folder / ALPHABET, folder / ATTRIBUTES, lm.unigrams, lm.lm):
        shutil.copyfile(path, output / path.relative_to(folder))


def _file(source: str, folder: Path, name: str) -> Path:
    path = find_file(source, folder, [name])
    if path is None:
        raise CheckpointError(
            f"the language model of {source} is not complete: there is no {name}. Expected {ALPHABET}, {ATTRIBUTES}, "
            f"{UNIGRAMS} and a KenLM file {FOLDER}/*.arpa or *.bin, as Wav2Vec2ProcessorWithLM saves them"
        )
    return path


def _kenlm_file(source: str, folder: Path) -> Path:
    found = sorted(path.relative_to(folder).as_posix() for path in _kenlm_files(folder))
    if not found:
        there = sorted(set(list_files(source, folder)))
        found = [name for name in there if name.startswith(f"{FOLDER}/") and name.endswith(KENLM_SUFFIXES)]
    if len(found) > 1:
        raise CheckpointError(
            f"{source} has several language models, {', '.join(found)}: expected one. Name it: decoder.lm=FILE"
        )
    return _file(source, folder, found[0] if found else f"{FOLDER}/*.arpa or *.bin")


def _kenlm_files(folder: Path) -> list[Path]:
    return [path for path in (folder / FOLDER).iterdir() if path.suffix in KENLM_SUFFIXES and path.name[0] != "."]


def _read_labels(path: Path) -> tuple[str, ...]:
    alphabet = read_json(path)
    labels = alphabet.get("labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{path} is not valid: expected a list of strings as labels, found {str(labels)[:60]}")
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise CheckpointError(f"{path} is not valid: labels occur twice: {listed([repr(name) for name in repeated])}")
    if alphabet.get("is_bpe"):
        raise CheckpointError(f"{path} is of word pieces (is_bpe), which beam search with a processor does not support")
    return tuple(labels)


def _read_attributes(path: Path) -> dict[str, Any]:
    """Return alpha, beta, unk_score_offset and score_boundary of attrs.json."""
    found = read_json(path)
    valid = all(_is_number(found.get(name)) for name in NUMBERS) and isinstance(found.get(FLAG), bool)
    if not valid:
        raise CheckpointError(
            f"{path} is not valid: expected numbers {', '.join(NUMBERS)} and a true or false {FLAG}, found "
            f"{str(found)[:120]}"
        )
    return {**{name: float(found[name]) for name in NUMBERS}, FLAG: found[FLAG]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
