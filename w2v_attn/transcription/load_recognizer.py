"""`load_recognizer`: a fine-tuned checkpoint -> the recogniser of its head."""

import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.checkpoints.tokenizers import read_tokenizer
from w2v_attn.encoder.waveforms import find_device
from w2v_attn.transcription.beam_search import BeamSearch, BeamSearchOptions
from w2v_attn.transcription.classifier import Classifier
from w2v_attn.transcription.ctc_recognizer import CtcRecognizer, greedy
from w2v_attn.transcription.recognizer import Recognizer


def load_recognizer(
    checkpoint: str | os.PathLike[str],
    *,
    revision: str | None = None,
    language: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
    decoder: BeamSearchOptions | None = None,
) -> Recognizer:
    """Return the model of a fine-tuned checkpoint with its head and our attention.

    Args:
        checkpoint: See `load_encoder`, also for the arguments up to `backend`.
        revision: See `load_encoder`.
        language: See `load_encoder`.
        dtype: See `load_encoder`.
        device: See `load_encoder`.
        backend: See `load_encoder`.
        decoder: A beam search with a language model, for CTC heads; None: greedy, the most probable symbol of each
            frame.

    Raises:
        CheckpointError: see `load_checkpoint`; or the checkpoint has no head that gives text or a label, or no
            vocabulary.
        ValueError: the backend is unknown or the device is not available.
    """
    place = find_device(device)
    loaded = load_checkpoint(checkpoint, revision=revision, language=language, dtype=dtype, with_head=True)
    architecture = type(loaded.model).__name__
    if architecture.endswith("ForCTC"):
        tokenizer = read_tokenizer(loaded.folder, loaded.language, source=loaded.source)
        return CtcRecognizer(loaded, tokenizer, search=_search(tokenizer, decoder), device=place, backend=backend)
    if architecture.endswith("ForSequenceClassification"):
        if decoder is not None:
            raise ValueError(f"{loaded.source} gives labels, not text: use decoder=greedy, without a language model")
        return Classifier(loaded, device=place, backend=backend)
    raise CheckpointError(
        f"{loaded.source} is a {architecture}, which gives neither text nor a label. Use a fine-tuned checkpoint, "
        "…ForCTC or …ForSequenceClassification, such as facebook/wav2vec2-base-960h"
    )


def _search(tokenizer: Any, decoder: BeamSearchOptions | None) -> Callable[[Tensor], Tensor]:
    if decoder is None:
        return greedy
    symbols = dict(tokenizer.get_vocab())
    return BeamSearch(decoder, symbols, blank=tokenizer.pad_token, delimiter=tokenizer.word_delimiter_token)
