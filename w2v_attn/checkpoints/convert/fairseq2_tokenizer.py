"""Processor files of Omnilingual ASR's checkpoints: a SentencePiece model becomes a tokenizer of transformers."""

import json
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.convert.fairseq2_config import folders_beside
from w2v_attn.checkpoints.convert.sentencepiece_model import (
    SentencePieceModel,
    make_tokenizer,
    read_sentencepiece,
)

DELIMITER = "|"  # of words, in vocabularies of Wav2Vec2CTCTokenizer; transformers 5 ignores another one
# What the character | is called there if it is a symbol itself: the first that is none.
BARS = ("｜", "¦", "∣", "❘")


def find_sentencepiece(path: Path, outputs: int) -> SentencePieceModel | None:
    """Return the SentencePiece model next to a checkpoint that has a piece for each output; None if there is no model.

    Raises:
        CheckpointError: None of the models has as many pieces, cannot be used, or several different ones have.
    """
    fitting: list[SentencePieceModel] = []
    others: list[str] = []
    for candidate in sorted(file for folder in folders_beside(path) for file in folder.glob("*.model")):
        try:
            found = read_sentencepiece(candidate)
        except CheckpointError as error:
            others.append(first_line(error))
            continue
        if len(found.pieces) == outputs:
            fitting.append(found)
        else:
            others.append(f"{candidate} has {len(found.pieces):,} pieces")
    if not fitting and others:
        raise CheckpointError(
            f"final_proj of {path} has {outputs:,} outputs, and no SentencePiece model next to it has as many pieces: "
            f"{'; '.join(others)}. Version 1 of Omnilingual ASR has 9,812 (omniASR_tokenizer.model), version 2 has "
            "10,288 (omniASR_tokenizer_written_v2.model)"
        )
    if len({model.pieces for model in fitting}) > 1:
        raise CheckpointError(
            f"several SentencePiece models next to {path} have {outputs:,} pieces: "
            f"{', '.join(model.path.name for model in fitting)}. Leave only the one of this checkpoint there"
        )
    return fitting[0] if fitting else None


def write_omniasr_processor(pieces: SentencePieceModel, folder: Path) -> None:
    """Write the files of an `OmniASRCTCProcessor` with this SentencePiece model as its tokenizer."""
    from transformers import OmniASRCTCProcessor, OmniASRFeatureExtractor, ParakeetTokenizer

    tokenizer = ParakeetTokenizer(
        tokenizer_object=make_tokenizer(pieces),
        **{name: pieces.pieces[number][0] for name, number in pieces.special.items()},
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    OmniASRCTCProcessor(feature_extractor=OmniASRFeatureExtractor(), tokenizer=tokenizer).save_pretrained(folder)


def write_wav2vec2_tokenizer(pieces: SentencePieceModel, folder: Path) -> None:
    """Write the files of a `Wav2Vec2CTCTokenizer` whose rows are those of the SentencePiece model.

    CTC's blank is row 0. The space is called |; if | is a symbol itself, it is called ｜ or by another similar sign.

    Raises:
        CheckpointError: A piece contains a space and other characters, which Wav2Vec2CTCTokenizer cannot represent.
    """
    from transformers import Wav2Vec2CTCTokenizer

    symbols = list(pieces.symbols)
    long = [symbol for symbol in symbols if " " in symbol and symbol != " "]
    if long:
        raise CheckpointError(
            f"{pieces.path} has pieces with a space and other characters, such as {long[0]!r}, which "
            "Wav2Vec2CTCTokenizer cannot represent: use format=huggingface"
        )
    if " " in symbols:
        if DELIMITER in symbols:
            symbols[symbols.index(DELIMITER)] = next(bar for bar in BARS if bar not in symbols)
        symbols[symbols.index(" ")] = DELIMITER
    vocabulary = folder / "vocab.json"
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    vocabulary.write_text(json.dumps(numbers, ensure_ascii=False, indent=1), encoding="utf-8")
    end = pieces.special.get("eos_token")
    special: dict[str, Any] = {
        "pad_token": symbols[0],
        "bos_token": None,
        "eos_token": None if end is None else symbols[end],
        "unk_token": symbols[pieces.special["unk_token"]],
    }
    Wav2Vec2CTCTokenizer(str(vocabulary), **special, word_delimiter_token=DELIMITER).save_pretrained(folder)
