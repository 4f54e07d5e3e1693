"""fairseq's dictionaries -> the symbols of a CTC head.

Source: fairseq, data/dictionary.py and criterions/ctc.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.errors import CheckpointError, first_line

# fairseq's dictionaries begin with these; CTC's blank is the first. Hugging Face calls the blank <pad>.
SPECIAL, SPECIAL_THERE = ("<s>", "<pad>", "</s>", "<unk>"), ("<pad>", "<s>", "</s>", "<unk>")


def symbols_of(path: Path, task: Mapping[str, Any], state: Any, outputs: int) -> tuple[str, ...] | None:
    """The symbols of a CTC head, of the dictionary beside the checkpoint or the one inside it; None: there is none."""
    labels = task.get("labels") or "ltr"  # HuBERT's task has a list of them
    beside = path.parent / f"dict.{labels[0] if isinstance(labels, list) else labels}.txt"
    inside = state.get("target_dictionary") if isinstance(state, dict) else None
    if beside.is_file():
        symbols, where = [*SPECIAL, *_read_dictionary(beside)], str(beside)
    elif isinstance(inside, dict) and isinstance(inside.get("symbols"), list):
        symbols, where = [str(symbol) for symbol in inside["symbols"]], f"the dictionary in {path}"
    else:
        return None
    if tuple(symbols[:4]) != SPECIAL or len(set(symbols)) != len(symbols):
        raise CheckpointError(f"{where} is not valid: expected {' '.join(SPECIAL)} first, and each symbol once")
    if len(symbols) != outputs:
        raise CheckpointError(
            f"{where} has {len(symbols)} symbols with its 4 special ones, but w2v_encoder.proj of {path} has {outputs} "
            "outputs: is it the dictionary of another checkpoint?"
        )
    return (*SPECIAL_THERE, *symbols[4:])


def _read_dictionary(path: Path) -> list[str]:
    """The symbols of lines `symbol count`."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # other ends of lines may be symbols
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    symbols = []
    for number, line in enumerate(lines, 1):
        symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not count.isdigit():
            raise CheckpointError(f"{path}, line {number}: expected a symbol and its count, found {line!r}")
        symbols.append(symbol)
    return symbols
