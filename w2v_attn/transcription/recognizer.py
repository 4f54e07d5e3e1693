"""`load_recognizer` and the recognisers it returns: for CTC heads, which give words, and for classifiers."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.loading import Checkpoint, load_checkpoint
from w2v_attn.checkpoints.tokenizers import read_tokenizer
from w2v_attn.encoder.waveforms import WaveformModel, evaluation_mode, find_device
from w2v_attn.transcription.beam_search import BeamSearch, BeamSearchOptions


@dataclass(frozen=True)
class Word:
    """A word with its time in the recording.

    Attributes:
        word: The word.
        start: Seconds.
        end: Seconds.
        score: Probability of its symbols on average over its frames, 0 to 1.
    """

    word: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Transcript:
    """The text of a recording.

    Attributes:
        text: The words.
        score: Geometric mean over frames of the chosen symbol's probability, 0 to 1.
        words: The words with their times.
    """

    text: str
    score: float
    words: tuple[Word, ...]

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with text, score, and words with times in seconds."""
        words = [{"word": w.word, "start": w.start, "end": w.end, "score": w.score} for w in self.words]
        return {"text": self.text, "score": self.score, "words": words}


@dataclass(frozen=True)
class Label:
    """The class of a recording.

    Attributes:
        label: The most probable class.
        score: Its probability.
        scores: The five most probable classes: label -> probability.
    """

    label: str
    score: float
    scores: dict[str, float]

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with label, score, and the scores of the most probable labels."""
        return {"label": self.label, "score": self.score, "scores": self.scores}


class Recognizer(WaveformModel, ABC):
    """A fine-tuned model with its head: waveforms in, transcripts or labels out."""

    def recognize(self, waveform: Tensor) -> Transcript | Label:
        """Return the transcript or the label of a recording.

        Args:
            waveform: float32 [samples] at `sample_rate`, not normalised.

        Raises:
            ValueError: the waveform is too short.
        """
        return self.decode(self.log_probabilities(waveform))

    @abstractmethod
    def decode(self, log_probabilities: Tensor) -> Transcript | Label:
        """Return the transcript or the label for the model's output, float32 [frames, symbols] or [labels]."""

    @torch.no_grad()
    def log_probabilities(self, waveform: Tensor) -> Tensor:
        """Return float32 [frames, symbols] or [labels] of one recording, computed without any other in the batch."""
        self.check_waveform(waveform)
        with evaluation_mode(self.model):
            return self.model(self.prepare(waveform)[None].to(self.dtype)).logits[0].float().log_softmax(-1).cpu()


def greedy(log_probabilities: Tensor) -> Tensor:
    """Return the most probable symbol of each frame, int64 [frames].

    Source: A. Graves et al., "Connectionist Temporal Classification", section 3.2, best path decoding.
    """
    return log_probabilities.argmax(-1)


class CtcRecognizer(Recognizer):
    """A recogniser with a CTC head: the symbols of a path through the frames, without repetitions and blanks.

    Args:
        checkpoint: The loaded model.
        tokenizer: Turns symbols into text.
        search: The decoder: float32 [frames, symbols] of log-probabilities -> int64 [frames].
        options: See `WaveformModel`.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Any, *, search: Callable[[Tensor], Tensor] = greedy, **options: Any
    ):
        super().__init__(checkpoint, **options)
        self.tokenizer, self._search = tokenizer, search

    def decode(self, log_probabilities: Tensor) -> Transcript:
        """Return the text, and the words with their times."""
        symbols = self._search(log_probabilities)
        best = log_probabilities.gather(-1, symbols[:, None])[:, 0]
        decoded = self.tokenizer.decode(symbols.tolist(), output_word_offsets=True)
        rate = self.frame_rate()
        words = []
        for found in decoded.word_offsets:
            first, end = int(found["start_offset"]), int(found["end_offset"])
            score = best[first:end].exp().mean().item()
            words.append(Word(found["word"], round(first / rate, 3), round(end / rate, 3), round(score, 4)))
        return Transcript(decoded.text, round(best.mean().exp().item(), 4), tuple(words))


class Classifier(Recognizer):
    """A recogniser that gives each recording one label."""

    def decode(self, log_probabilities: Tensor) -> Label:
        """Return the most probable label and the scores of the five most probable ones."""
        probabilities = log_probabilities.exp()
        names = self.config.id2label
        likeliest = probabilities.topk(min(5, len(probabilities)))
        scores = {
            names[i]: round(p, 4) for p, i in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        }
        label = next(iter(scores))
        return Label(label, scores[label], scores)


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
