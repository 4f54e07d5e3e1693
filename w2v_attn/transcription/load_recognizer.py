"""`load_recognizer`: a fine-tuned checkpoint -> the recogniser of its head."""

import logging
import os
from collections.abc import Callable

from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.ctc_head import CtcHead, read_ctc_head
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.encoder.waveforms import find_device
from w2v_attn.transcription.beam_search import BeamSearch, BeamSearchOptions
from w2v_attn.transcription.classifier import Classifier
from w2v_attn.transcription.ctc_recognizer import CtcRecognizer, greedy
from w2v_attn.transcription.recognizer import Recognizer

logger = logging.getLogger(__name__)


def load_recognizer(
    checkpoint: str | os.PathLike[str],
    *,
    revision: str | None = None,
    language: str | None = None,
    base_model: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
    decoder: BeamSearchOptions | None = None,
    long_form: LongForm | None = None,
) -> Recognizer:
    """Return the model of a fine-tuned checkpoint with its head and our attention.

    Args:
        checkpoint: See `load_encoder`, also for the arguments up to `backend`.
        revision: See `load_encoder`.
        language: See `load_encoder`.
        base_model: See `load_encoder`.
        dtype: See `load_encoder`.
        device: See `load_encoder`.
        backend: See `load_encoder`.
        decoder: A beam search with a language model, for CTC heads; None: greedy, the most probable symbol of each
            frame.
        long_form: See `load_encoder`.

    Raises:
        CheckpointError: see `load_checkpoint`; or the checkpoint has no head that gives text or a label, or no
            vocabulary.
        ValueError: the backend is unknown, the device is not available, or the checkpoint does not support `long_form`.
    """
    options = {"device": find_device(device), "backend": backend, "long_form": long_form}
    loaded = load_checkpoint(
        checkpoint, revision=revision, language=language, base_model=base_model, dtype=dtype, with_head=True
    )
    architecture = type(loaded.model).__name__
    if architecture.endswith("ForCTC"):
        head = read_ctc_head(loaded)
        for warning in head.warnings:
            logger.warning("CTC head of %s: %s", loaded.source, warning)
        return CtcRecognizer(loaded, head, search=_search(head, decoder), **options)
    if architecture.endswith("ForSequenceClassification"):
        if decoder is not None:
            raise ValueError(f"{loaded.source} gives labels, not text: use decoder=greedy, without a language model")
        return Classifier(loaded, **options)
    raise CheckpointError(
        f"{loaded.source} is a {architecture}, which gives neither text nor a label. Use a fine-tuned checkpoint, "
        "…ForCTC or …ForSequenceClassification, such as facebook/wav2vec2-base-960h"
    )


def _search(head: CtcHead, decoder: BeamSearchOptions | None) -> Callable[[Tensor], Tensor]:
    return greedy if decoder is None else BeamSearch(decoder, head)
