"""Preprocessor, tokenizer and card of a checkpoint: the files besides config and weights."""

import json
import shutil
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.convert.raw_checkpoint import RawCheckpoint

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "tokenizer.json",
    "text_normalization.json",  # of fine-tuning, see transcription/text_normalization.py
)
PROCESSOR_FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES, "README.md")


def copy_processor_files(source: Path, folder: Path) -> None:
    """Copy the processor files that exist in `source`."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def combine_processor_files(first: Path, second: Path, folder: Path) -> None:
    """Copy the preprocessor and the tokenizer, each as a whole from `first` if it is there, else from `second`."""
    for names in (PREPROCESSOR_FILES, TOKENIZER_FILES):
        source = first if any((first / name).is_file() for name in names) else second
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def write_processor_files(raw: RawCheckpoint, config: Any, folder: Path) -> None:
    """Write preprocessor and tokenizer files for a checkpoint of another format, from its own values.

    An existing preprocessor_config.json is kept.
    """
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    if not (folder / "preprocessor_config.json").is_file():
        Wav2Vec2FeatureExtractor(
            sampling_rate=raw.sample_rate,
            do_normalize=raw.do_normalize,
            # A group norm over time includes the padding: such models were trained without a mask.
            return_attention_mask=getattr(config, "feat_extract_norm", "layer") == "layer",
        ).save_pretrained(folder)
    if raw.symbols is not None:
        vocabulary = folder / "vocab.json"
        numbers = {symbol: number for number, symbol in enumerate(raw.symbols)}
        vocabulary.write_text(json.dumps(numbers, ensure_ascii=False, indent=1), encoding="utf-8")
        blank, begin, end, unknown = raw.symbols[:4]
        Wav2Vec2CTCTokenizer(
            str(vocabulary),
            pad_token=blank,
            bos_token=begin,
            eos_token=end,
            unk_token=unknown,
            word_delimiter_token="|",
        ).save_pretrained(folder)


def has_preprocessor(folder: Path) -> bool:
    """Return whether a folder has a preprocessor config."""
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


def read_filter_banks(folder: Path) -> Any:
    """Return the filter bank extractor of a checkpoint, from its preprocessor config or with default values."""
    from transformers import SeamlessM4TFeatureExtractor

    if not has_preprocessor(folder):
        return SeamlessM4TFeatureExtractor()
    try:
        extractor = SeamlessM4TFeatureExtractor.from_pretrained(str(folder))
        valid = extractor.sampling_rate == 16_000 and extractor.stride > 0 and extractor.num_mel_bins > 0
    except Exception as error:  # a number may be any JSON value
        raise CheckpointError(f"the preprocessor config of {folder} is not valid: {first_line(error)}") from error
    if not valid:
        raise CheckpointError(
            f"the preprocessor config of {folder} is not valid: expected filters at 16000 Hz and a stride above 0, "
            f"found {extractor.num_mel_bins!r} at {extractor.sampling_rate!r} Hz and {extractor.stride!r}"
        )
    return extractor


def read_preprocessor(folder: Path) -> tuple[int, bool, str]:
    """Return (sample rate in Hz, do_normalize, the source of these values)."""
    from transformers import Wav2Vec2FeatureExtractor

    if not has_preprocessor(folder):
        return 16_000, True, "the family's default: there is no preprocessor config"
    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(folder))
    except Exception as error:  # a number may be any JSON value
        raise CheckpointError(f"the preprocessor config of {folder} is not valid: {first_line(error)}") from error
    rate, normalize = extractor.sampling_rate, extractor.do_normalize
    if not isinstance(rate, int) or not 1000 <= rate <= 384_000 or not isinstance(normalize, bool):
        raise CheckpointError(
            f"the preprocessor config of {folder} is not valid: expected sampling_rate in Hz and do_normalize true or "
            f"false, found {rate!r} and {normalize!r}"
        )
    return rate, normalize, "the preprocessor config"
