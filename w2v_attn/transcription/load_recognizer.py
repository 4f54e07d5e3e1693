"""`load_recognizer`: a fine-tuned checkpoint -> the recogniser of its head."""

import logging
import os
from collections.abc import Callable, Iterator

from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.classification_heads import (
    CLASSIFIER,
    FRAME_CLASSIFIER,
    REGRESSION,
    X_VECTOR,
    are_unnamed,
    given_problem_type,
    joined,
)
from w2v_attn.checkpoints.ctc_head import CtcHead, read_ctc_head
from w2v_attn.checkpoints.families import WITH_LANGUAGE_MODEL
from w2v_attn.checkpoints.json_object import read_json
from w2v_attn.checkpoints.loading import Checkpoint, load_checkpoint
from w2v_attn.checkpoints.processor_lm import FOLDER, check_labels, has_processor_lm, read_processor_lm
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.encoder.waveforms import find_device
from w2v_attn.transcription.beam_search import BeamSearch, BeamSearchOptions
from w2v_attn.transcription.classifier import Classifier
from w2v_attn.transcription.ctc_recognizer import CtcRecognizer, greedy
from w2v_attn.transcription.frame_classifier import FrameClassifier
from w2v_attn.transcription.open_beam_search import OpenBeamSearch
from w2v_attn.transcription.recognizer import Recognizer
from w2v_attn.transcription.speaker_embedder import SpeakerEmbedder

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
    problem_type: str | None = None,
    threshold: float = 0.5,
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
        decoder: A beam search with a language model, that of a file or of the checkpoint's processor, for CTC heads;
            None: greedy, the most probable symbol of each frame.
        long_form: See `load_encoder`.
        problem_type: What the outputs of a classification head mean, instead of what its config says:
            `single_label_classification`, `multi_label_classification` or `regression`. None: what the config says.
        threshold: The probability above which a recording or a frame has a label, where labels are independent.

    Raises:
        CheckpointError: see `load_checkpoint`; or the checkpoint has no head that gives text or labels, or no
            vocabulary.
        ValueError: the backend or the problem type is unknown, the device is not available, or the checkpoint does not
            support `long_form`.
    """
    problem_type = given_problem_type(problem_type, "problem_type")
    place = find_device(device)
    options = {"device": place, "backend": backend, "long_form": long_form}
    loaded = load_checkpoint(
        checkpoint,
        revision=revision,
        language=language,
        base_model=base_model,
        dtype=dtype,
        with_head=True,
        device=place,
    )
    architecture = type(loaded.model).__name__
    if problem_type is not None and not architecture.endswith((CLASSIFIER, FRAME_CLASSIFIER)):
        raise ValueError(
            f"problem_type={problem_type} is for classification heads; {loaded.source} is a {architecture}"
        )
    if architecture.endswith("ForCTC"):
        head = read_ctc_head(loaded)
        for warning in head.warnings:
            logger.warning("CTC head of %s: %s", loaded.source, warning)
        return CtcRecognizer(loaded, head, search=_search(loaded, head, decoder), **options)
    if decoder is not None:
        raise ValueError(f"{loaded.source} gives no text: use decoder=greedy, without a language model")
    if architecture.endswith(X_VECTOR):
        return SpeakerEmbedder(loaded, **options)
    classifiers = {CLASSIFIER: Classifier, FRAME_CLASSIFIER: FrameClassifier}
    for suffix, classifier in classifiers.items():
        if architecture.endswith(suffix):
            return classifier(loaded, problem_type=problem_type, threshold=threshold, **options)
    if _decodes_with_language_model(loaded):
        raise CheckpointError(
            f"{loaded.source} writes text with a language model as decoder, which is not supported: only its encoder "
            "is used, for features and fine-tuning. To transcribe, use the CTC variant of the checkpoint, such as "
            "hf-audio/omniasr-ctc-300m-v2, or omniASR-CTC-….pt of fairseq2"
        )
    named = ", ".join(map(str, loaded.model.config.architectures or ()))
    is_foreign = named not in ("", architecture)
    other = f" (its config.json names {named}, which transformers does not have)" if is_foreign else ""
    raise CheckpointError(
        f"{loaded.source} is a {architecture}{other}, which gives neither text nor a label. Use a fine-tuned "
        f"checkpoint, …ForCTC, …{CLASSIFIER}, …{FRAME_CLASSIFIER} or …{X_VECTOR}, such as facebook/wav2vec2-base-960h"
    )


def _decodes_with_language_model(loaded: Checkpoint) -> bool:
    """Return whether a checkpoint has a language model after its encoder, of which nothing is loaded."""
    config = loaded.folder / "config.json"
    family = read_json(config).get("model_type") if config.is_file() else None
    return family in WITH_LANGUAGE_MODEL or "LLM" in loaded.format


def notes_on(recognizer: Recognizer) -> Iterator[str]:
    """Yield what people should know about the outputs of a checkpoint before they use them."""
    if not isinstance(recognizer, Classifier | FrameClassifier):
        return
    if are_unnamed(recognizer.names):
        yield (
            f"the checkpoint does not say what its outputs mean: they are called {joined(recognizer.names)}. If you "
            "know, write the names into id2label in its config.json"
        )
    if recognizer.config.problem_type is None and recognizer.problem_type == REGRESSION:
        yield (
            "the config of the checkpoint has no problem_type: its single output is taken as a value (regression). If "
            "it is the logit of a yes or no, say problem_type=multi"
        )


def _search(loaded: Checkpoint, head: CtcHead, decoder: BeamSearchOptions | None) -> Callable[[Tensor], Tensor]:
    """Return the decoder that was asked for; without a language model of its own, with the processor's."""
    has_own = has_processor_lm(loaded.folder)
    if decoder is None:
        if has_own:
            logger.warning(
                "%s has a language model, which decoder=greedy does not use: decoder=beam_search does", loaded.source
            )
        return greedy
    if decoder.lm is not None:
        return BeamSearch(decoder, head)
    if not has_own:
        raise ValueError(
            f"decoder=beam_search needs a language model, and {loaded.source} has none ({FOLDER}/): name a KenLM file "
            "(decoder.lm=4-gram.arpa)"
        )
    lm = read_processor_lm(loaded.source, loaded.folder)
    for warning in check_labels(lm, head, loaded.source):
        logger.warning("%s", warning)
    return OpenBeamSearch(lm, head, decoder)
