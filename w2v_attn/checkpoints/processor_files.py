"""What a checkpoint carries besides config and weights: its preprocessor, tokenizer and card."""

import json
import shutil
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.convert.parts import Parts

COMPANIONS = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "README.md",
)


def copy_companions(source: Path, folder: Path) -> None:
    """Copies those that there are."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_companions(parts: Parts, config: Any, folder: Path) -> None:
    """Those of a checkpoint of another format: what stands beside it, else what it says of itself."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    if not (folder / "preprocessor_config.json").is_file():
        Wav2Vec2FeatureExtractor(
            sampling_rate=parts.sample_rate,
            do_normalize=parts.do_normalize,
            # A group norm over time sees the padding: such models were trained without a mask.
            return_attention_mask=getattr(config, "feat_extract_norm", "layer") == "layer",
        ).save_pretrained(folder)
    if parts.symbols is not None:
        vocabulary = folder / "vocab.json"
        numbers = {symbol: number for number, symbol in enumerate(parts.symbols)}
        vocabulary.write_text(json.dumps(numbers, ensure_ascii=False, indent=1), encoding="utf-8")
        blank, begin, end, unknown = parts.symbols[:4]
        Wav2Vec2CTCTokenizer(
            str(vocabulary),
            pad_token=blank,
            bos_token=begin,
            eos_token=end,
            unk_token=unknown,
            word_delimiter_token="|",
        ).save_pretrained(folder)
