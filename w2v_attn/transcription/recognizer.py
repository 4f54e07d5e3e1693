"""`load_recognizer` and the recognisers it returns: a CTC head gives words, a classifier a label."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.errors import CheckpointError
from w2v_attn.checkpoints.loading import Checkpoint, load_checkpoint
from w2v_attn.checkpoints.tokenizers import read_tokenizer
from w2v_attn.encoder.waveforms import WaveformModel, evaluation_mode, find_device
from w2v_attn.transcription.beam_search import BeamSearch, BeamSearchOptions


@dataclass(frozen=True)
class Word:
    """start, end: seconds. score: mean probability of its frames, 0 to 1."""

    word: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Transcript:
    """What a recording says. score: geometric mean over frames of the found symbol's probability, 0 to 1."""

    text: str
    score: float
    words: tuple[Word, ...]

    def as_record(self) -> dict[str, Any]:
        """For JSON: text, score, words with times in seconds."""
        words = [{"word": w.word, "start": w.start, "end": w.end, "score": w.score} for w in self.words]
        return {"text": self.text, "score": self.score, "words": words}


@dataclass(frozen=True)
class Label:
    """What a recording is. score: its probability. scores: label -> probability of the likeliest five."""

    label: str
    score: float
    scores: dict[str, float]

    def as_record(self) -> dict[str, Any]:
        """For JSON: label, score, and the likeliest labels with theirs."""
        return {"label": self.label, "score": self.score, "scores": self.scores}


class Recognizer(WaveformModel, ABC):
    """A fine-tuned model with its head."""

    def recognize(self, waveform: Tensor) -> Transcript | Label:
        """waveform: float32 [samples] at `sample_rate`, as recorded. Raises ValueError where it is too short."""
        return self.decode(self.log_probabilities(waveform))

    @abstractmethod
    def decode(self, log_probabilities: Tensor) -> Transcript | Label:
        """What the model's answer to one recording means."""

    @torch.no_grad()
    def log_probabilities(self, waveform: Tensor) -> Tensor:
        """float32 [frames, symbols] or [labels]; one recording at a time, so that neighbours do not matter."""
        self.check_waveform(waveform)
        with evaluation_mode(self.model):
            return self.model(self.prepare(waveform)[None].to(self.dtype)).logits[0].float().log_softmax(-1).cpu()


def greedy(log_probabilities: Tensor) -> Tensor:
    """int64 [frames]: the likeliest symbol of each frame.

    Source: A. Graves et al., "Connectionist Temporal Classification", section 3.2, best path decoding.
    """
    return log_probabilities.argmax(-1)


class CtcRecognizer(Recognizer):
    """A path of symbols through the frames, with repetitions and blanks taken out.

    search: float32 [frames, symbols] of log-probabilities -> int64 [frames].
    """

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Any, *, search: Callable[[Tensor], Tensor] = greedy, **options: Any
    ):
        super().__init__(checkpoint, **options)
        self.tokenizer, self._search = tokenizer, search

    def decode(self, log_probabilities: Tensor) -> Transcript:
        """The words with their times."""
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
    """One label for a recording."""

    def decode(self, log_probabilities: Tensor) -> Label:
        """The likeliest label, and the next ones."""
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
    """The model of a fine-tuned checkpoint with its head and our attention; arguments as for `load_encoder`.

    decoder: a beam search with a language model, for CTC heads; None is greedy: the likeliest symbol of each frame.

    Raises:
        CheckpointError: see `load_checkpoint`; or the checkpoint has no head that gives text or a label, or no
            vocabulary. ValueError: an unknown backend, or a device that is not there.
    """
    place = find_device(device)
    loaded = load_checkpoint(checkpoint, revision=revision, language=language, dtype=dtype, with_head=True)
    architecture = type(loaded.model).__name__
    if architecture.endswith("ForCTC"):
        tokenizer = read_tokenizer(loaded.folder, loaded.language, source=loaded.source)
        return CtcRecognizer(loaded, tokenizer, search=_search(tokenizer, decoder), device=place, backend=backend)
    if architecture.endswith("ForSequenceClassification"):
        if decoder is not None:
            raise ValueError(f"{loaded.source} gives labels: a language model is of no use to it")
        return Classifier(loaded, device=place, backend=backend)
    raise CheckpointError(
        f"{loaded.source} is a {architecture}, which gives neither text nor a label. Expected a checkpoint that was "
        "fine-tuned: …ForCTC or …ForSequenceClassification, such as facebook/wav2vec2-base-960h"
    )


def _search(tokenizer: Any, decoder: BeamSearchOptions | None) -> Callable[[Tensor], Tensor]:
    if decoder is None:
        return greedy
    symbols = dict(tokenizer.get_vocab())
    return BeamSearch(decoder, symbols, blank=tokenizer.pad_token, delimiter=tokenizer.word_delimiter_token)
