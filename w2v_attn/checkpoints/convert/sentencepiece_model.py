"""SentencePiece models: their pieces and settings, and the tokenizer of the package tokenizers that equals them.

The file is a protocol buffer; the few fields that are needed are read here, without the packages sentencepiece and
protobuf.

Source: SentencePiece, src/sentencepiece_model.proto, for field numbers and defaults; transformers,
convert_slow_tokenizer.py, `OmniASRConverter`, for the tokenizer of models whose pieces contain plain spaces.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

SPACE = "▁"  # in pieces of models that escape spaces
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
SUPPORTED = ("unigram", "char")  # a text has one segmentation into single characters, which is also the unigram model's
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces


@dataclass(frozen=True)
class SentencePieceModel:
    """A SentencePiece model.

    Attributes:
        path: Its file.
        pieces: (text, log probability, type) of each piece, by number.
        model_type: "unigram" or "char".
        special: Number of the unknown piece and of the pieces of the start, the end and of padding, by transformers'
            names (unk_token, bos_token, eos_token, pad_token); those that the model has.
        escapes_spaces: Whether the pieces contain ▁ instead of spaces.
        adds_prefix: Whether a space is added before a text.
        normalization: The compiled table of the normalization of texts; empty: none.
    """

    path: Path
    pieces: tuple[tuple[str, float, int], ...]
    model_type: str
    special: dict[str, int]
    escapes_spaces: bool
    adds_prefix: bool
    normalization: bytes

    @property
    def symbols(self) -> tuple[str, ...]:
        """The texts of the pieces by number, with spaces as spaces."""
        if not self.escapes_spaces:
            return tuple(text for text, _, _ in self.pieces)
        return tuple(text.replace(SPACE, " ") for text, _, _ in self.pieces)


def is_sentencepiece(start: bytes) -> bool:
    """Return whether a file with these first 16 bytes may be a SentencePiece model: a first piece with its text."""
    return len(start) == 16 and start[0] == 0x0A and start[2] == 0x0A and 0 < start[3] < start[1]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a SentencePiece model.

    Raises:
        CheckpointError: It cannot be read, it is of a type that is not supported, or no SentencePiece model.
    """
    try:
        return _parse(path, path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    except (IndexError, TypeError, ValueError, struct.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no SentencePiece model, or damaged. Download the file again") from error


def make_tokenizer(model: SentencePieceModel) -> Any:
    """Return the `tokenizers.Tokenizer` that encodes and decodes as the SentencePiece model does."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = [(text, score) for text, score, _ in model.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=model.special["unk_token"], byte_fallback=False))
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind == CONTROL)
            for text, _, kind in model.pieces
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    steps: list[Any] = [normalizers.Precompiled(model.normalization)] if model.normalization else []
    steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.escapes_spaces:
        steps.append(normalizers.Replace(" ", SPACE))
        ends: list[Any] = [decoders.Replace(SPACE, " "), decoders.Fuse()]
        if model.adds_prefix:
            steps.append(normalizers.Prepend(SPACE))
            ends.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(ends)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
        tokenizer.decoder = decoders.Fuse()
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


# ---------------------------------------------------------------------------------------------- the file


def _parse(path: Path, data: bytes) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode("utf-8"), piece.get(2, 0.0), piece.get(3, NORMAL)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(_fields(value))
    if not (pieces and trainer and normalizer):
        raise ValueError("it ends early")
    model_type = MODEL_TYPES.get(trainer.get(3, 1), "unknown")
    if model_type not in SUPPORTED or any(kind == BYTE for _, _, kind in pieces):
        found = f"of the type {model_type}" if model_type not in SUPPORTED else "with pieces for bytes"
        raise CheckpointError(
            f"{path} is a SentencePiece model {found}, which is not supported: expected the type "
            f"{' or '.join(SUPPORTED)}, as the tokenizers of Omnilingual ASR are"
        )
    return SentencePieceModel(
        path=path,
        pieces=tuple(pieces),
        model_type=model_type,
        special=_special(pieces, trainer),
        escapes_spaces=bool(normalizer.get(5, True)),
        adds_prefix=bool(normalizer.get(3, True)),
        normalization=normalizer.get(2, b""),
    )


def _special(pieces: list[tuple[str, float, int]], trainer: dict[int, Any]) -> dict[str, int]:
    """Return the numbers of the special pieces, from the settings of the training (-1: there is none)."""
    settings = {"unk_token": (40, 0), "bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}
    found = {name: trainer.get(field, default) for name, (field, default) in settings.items()}
    special = {name: number for name, number in found.items() if 0 <= number < len(pieces)}
    if "unk_token" not in special:
        raise ValueError("it has no unknown piece")
    return special


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a message: int, float of 4 bytes, or bytes. Raises ValueError if it ends early."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value - (1 << 64) if value >> 63 else value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"it has a field of the wire type {wire}")
        value = data[position : position + size]
        if len(value) != size:
            raise ValueError("it ends early")
        position += size
        yield number, struct.unpack("<f", value)[0] if wire == 5 else value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return (integer, position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("it has an integer of more than 64 bits")
