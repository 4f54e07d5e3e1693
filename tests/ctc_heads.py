"""CTC tokenizers and heads for tests, written to disk and read as those of checkpoints are."""

import json
import tempfile
from pathlib import Path

from w2v_attn.checkpoints.ctc_head import derive_ctc_head
from w2v_attn.checkpoints.tokenizers import read_tokenizer


def make_tokenizer(symbols, config=None, folder=None):
    """Return the tokenizer of a vocab.json with these symbols and, unless None, this tokenizer_config.json."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return make_tokenizer(symbols, config, Path(temporary))
    numbers = symbols if isinstance(symbols, dict) else {symbol: row for row, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return read_tokenizer(folder)


def make_head(symbols, config=None, *, rows=None, config_blank=None):
    """Return the head with these symbols; rows: the number of its outputs, by default that of the symbols."""
    tokenizer = make_tokenizer(symbols, config)
    return derive_ctc_head(
        tokenizer, rows=len(symbols) if rows is None else rows, config_blank=config_blank, source="a checkpoint"
    )
