"""Preprocessor, tokenizer and card of a checkpoint: the files besides config and weights."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.convert.fairseq2_tokenizer import write_omniasr_processor, write_wav2vec2_tokenizer
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
# What is added to the variance of a waveform, in transformers' Wav2Vec2FeatureExtractor and OmniASRFeatureExtractor.
WAV2VEC2_EPSILON, OMNIASR_EPSILON = 1e-7, 1e-5
# Our key in preprocessor_config.json for another epsilon: stock's Wav2Vec2FeatureExtractor keeps it and adds 1e-7.
EPSILON = "normalize_epsilon"
PROCESSOR_FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES, "README.md")


@dataclass(frozen=True)
class Preprocessor:
    """How waveforms are prepared for a model.

    Attributes:
        sample_rate: Hz.
        do_normalize: Whether a waveform is normalized to mean 0 and variance 1.
        epsilon: What is added to the variance.
        source: Where these values are known from, for people.
    """

    sample_rate: int
    do_normalize: bool
    epsilon: float
    source: str


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
    from transformers import Wav2Vec2CTCTokenizer

    if raw.pieces is not None and config.model_type == "omniasr_ctc":
        write_omniasr_processor(raw.pieces, folder)
        return
    if not (folder / "preprocessor_config.json").is_file():
        epsilon = WAV2VEC2_EPSILON if raw.normalize_epsilon is None else raw.normalize_epsilon
        feature_extractor_for(
            config, sample_rate=raw.sample_rate, do_normalize=raw.do_normalize, epsilon=epsilon
        ).save_pretrained(folder)
    if raw.pieces is not None and config.model_type == "wav2vec2":
        write_wav2vec2_tokenizer(raw.pieces, folder)
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


def feature_extractor_for(
    config: Any, *, sample_rate: int, do_normalize: bool, epsilon: float = WAV2VEC2_EPSILON
) -> Any:
    """Return transformers' feature extractor for a model with this config that reads waveforms.

    Wav2Vec2's has no epsilon: another one than its own is written into its config, for this package.
    """
    import transformers

    options: dict[str, Any] = {"sampling_rate": sample_rate, "do_normalize": do_normalize}
    if config.model_type.startswith("omniasr"):
        return transformers.OmniASRFeatureExtractor(**options)
    # A group norm over time includes the padding: such models were trained without a mask.
    masks = getattr(config, "feat_extract_norm", "layer") == "layer"
    if epsilon != WAV2VEC2_EPSILON:
        options[EPSILON] = epsilon
    return transformers.Wav2Vec2FeatureExtractor(**options, return_attention_mask=masks)


def processor_for(config: Any, extractor: Any, tokenizer: Any) -> Any:
    """Return transformers' processor of a CTC model with this config."""
    import transformers

    name = "OmniASRCTCProcessor" if config.model_type.startswith("omniasr") else "Wav2Vec2Processor"
    return getattr(transformers, name)(extractor, tokenizer)


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


def read_preprocessor(folder: Path, family: str) -> Preprocessor:
    """Return how the waveforms for a checkpoint of this family (`model_type`) are prepared.

    Raises:
        CheckpointError: the preprocessor config is not valid.
    """
    from transformers import Wav2Vec2FeatureExtractor

    if not has_preprocessor(folder):
        epsilon = OMNIASR_EPSILON if family.startswith("omniasr") else WAV2VEC2_EPSILON
        return Preprocessor(16_000, True, epsilon, "the family's default: there is no preprocessor config")
    try:
        values, _ = Wav2Vec2FeatureExtractor.get_feature_extractor_dict(str(folder))
        extractor: Any = Wav2Vec2FeatureExtractor.from_dict(values)
    except Exception as error:  # a number may be any JSON value
        raise CheckpointError(f"the preprocessor config of {folder} is not valid: {first_line(error)}") from error
    rate, normalize = extractor.sampling_rate, extractor.do_normalize
    if not isinstance(rate, int) or not 1000 <= rate <= 384_000 or not isinstance(normalize, bool):
        raise CheckpointError(
            f"the preprocessor config of {folder} is not valid: expected sampling_rate in Hz and do_normalize true or "
            f"false, found {rate!r} and {normalize!r}"
        )
    # The class, not the family, decides: a copy of an OmniASR model may come with wav2vec 2.0's preprocessor.
    is_omniasr = values.get("feature_extractor_type") == "OmniASRFeatureExtractor"
    epsilon = OMNIASR_EPSILON if is_omniasr else values.get(EPSILON, WAV2VEC2_EPSILON)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise CheckpointError(
            f"the preprocessor config of {folder} is not valid: expected {EPSILON} between 0 and 1, found {epsilon!r}"
        )
    return Preprocessor(rate, normalize, epsilon, "the preprocessor config")
