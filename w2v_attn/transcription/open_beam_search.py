"""Beam search of any words with the language model of a checkpoint's processor, as pyctcdecode does.

It returns the text with the highest score
log p(text | speech) + alpha · log p(words) + beta · words,
in which p(text | speech) is the sum over its paths that were kept, log p(words) is KenLM's, and unk_score_offset is
added to log10 p of each word that is not known. A word that is not complete yet costs unk_score_offset if no known word
begins with it.

Source: A. Graves and N. Jaitly, "Towards End-to-End Speech Recognition with Recurrent Neural Networks", section 4, for
the sum over paths; the scores and limits are those of pyctcdecode 0.5, which `Wav2Vec2ProcessorWithLM` uses.
"""

import heapq
import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2v_attn.checkpoints.ctc_head import CtcHead
from w2v_attn.checkpoints.processor_lm import ProcessorLm
from w2v_attn.transcription.beam_search import BeamSearchOptions, read_lexicon
from w2v_attn.transcription.kenlm import UNKNOWN, file_hash, load_flashlight, open_kenlm, read_words

# Limits of pyctcdecode: a symbol below this log-probability is considered only if it is the most probable one, and a
# hypothesis that is worse than the best by more than MAX_GAP is dropped.
MIN_LOG_PROBABILITY = -5.0
MAX_GAP = 10.0
# Letters of an unknown word from which on its cost grows with its length.
LONG_WORD = 6


@dataclass(eq=False, slots=True)
class _Words:
    """Complete words of hypotheses: the state and score of the language model after them, and longer ones."""

    state: Any
    score: float
    longer: "dict[str, _Words]" = field(default_factory=dict)


class _Hypothesis(NamedTuple):
    """Hypotheses of one text and one last symbol.

    Attributes:
        words: Their complete words.
        partial: The word that is not complete.
        last: The row of the last symbol; -1 before the first frame.
        acoustic: The logarithm of the sum of their probabilities.
        best: That of the most probable one.
        path: Its symbols as (row, path before).
    """

    words: _Words
    partial: str
    last: int
    acoustic: float
    best: float
    path: Any


class OpenBeamSearch:
    """A decoder that returns the symbol of each frame, with the language model of a checkpoint's processor.

    Args:
        lm: The language model.
        head: The checkpoint's CTC head.
        options: The parameters of the search; `lm_weight`, `word_score` and `lexicon` are used instead of alpha, beta
            and unigrams.txt.

    Raises:
        ValueError: the extra is not installed, the language model cannot be read, or the vocabulary has no space.
    """

    def __init__(self, lm: ProcessorLm, head: CtcHead, options: BeamSearchOptions):
        if head.delimiter is None:
            raise ValueError("the checkpoint's vocabulary has no space between words: a language model cannot be used")
        self._lm, self._options = lm, options
        self._labels, self._blank = lm.labels, head.blank
        self._delimiter = head.symbols[head.delimiter]
        self._alpha = lm.alpha if options.lm_weight is None else options.lm_weight
        self._beta = lm.beta if options.word_score is None else options.word_score
        named = set(lm.unigrams.read_text(encoding="utf-8").splitlines())
        if options.lexicon is not None:
            named = set(read_lexicon(options.lexicon))
        named.discard("")
        inside = read_words(lm.lm)
        self._sorted = sorted(named if inside is None else named.intersection(inside))
        # As in pyctcdecode, without a list of words those of the language model are known.
        self._known = frozenset(self._sorted or inside or ())
        _, dictionary, _ = load_flashlight()
        entries = dictionary.Dictionary()
        self._entries = {
            word: number for number, word in enumerate([UNKNOWN, *sorted(self._known.union(inside or ()))])
        }
        for word in self._entries:
            entries.add_entry(word)
        self._model = open_kenlm(lm.lm, entries)
        self._costs: dict[str, float] = {}

    def describe(self) -> str:
        """Return what determines the words, with hashes of the files."""
        files = {"lm": self._lm.lm, "lexicon": self._options.lexicon or self._lm.unigrams}
        numbers = {
            "beam_size": self._options.beam_size,
            "lm_weight": self._alpha,
            "word_score": self._beta,
            "unk_score_offset": self._lm.unk_score_offset,
            "score_boundary": self._lm.score_boundary,
        }
        parts = [f"{name} {file_hash(path)}" for name, path in files.items()]
        return ", ".join(["open_beam_search", *parts, *(f"{name} {number:g}" for name, number in numbers.items())])

    def __call__(self, log_probabilities: Tensor) -> Tensor:
        """Return the symbol of each frame: float32 [frames, symbols] -> int64 [frames]."""
        frames = log_probabilities.double().cpu().numpy()
        self._costs = {"": 0.0}
        start = self._model.start(not self._lm.score_boundary)
        hypotheses = [_Hypothesis(_Words(start, 0.0), "", -1, 0.0, 0.0, None)]
        for frame in frames:
            hypotheses = self._prune(self._extend(hypotheses, frame))
        return torch.tensor(self._without_gaps(self._best_path(hypotheses)), dtype=torch.int64)

    def _extend(self, hypotheses: list[_Hypothesis], frame: Any) -> list[_Hypothesis]:
        """Return the hypotheses with one more frame, those of one text and last symbol merged."""
        merged: dict[tuple[_Words, str, int], _Hypothesis] = {}
        rows = sorted({*np.flatnonzero(frame >= MIN_LOG_PROBABILITY).tolist(), int(frame.argmax())})
        for row in rows:
            probability, label = float(frame[row]), self._labels[row]
            for words, partial, last, acoustic, best, path in hypotheses:
                if row == self._delimiter:
                    words, partial = (self._append(words, partial) if partial else words), ""
                elif row not in (self._blank, last):
                    partial = partial + label
                key = (words, partial, row)
                found = _Hypothesis(*key, acoustic + probability, best + probability, (row, path))
                merged[key] = _merge(merged[key], found) if key in merged else found
        return list(merged.values())

    def _prune(self, hypotheses: list[_Hypothesis]) -> list[_Hypothesis]:
        """Return the best hypotheses, the best first."""
        scored = [(h.acoustic + h.words.score + self._cost_of(h.partial), h) for h in hypotheses]
        limit = max(score for score, _ in scored) - MAX_GAP
        kept = [pair for pair in scored if pair[0] >= limit]
        return [h for _, h in heapq.nlargest(self._options.beam_size, kept, key=lambda pair: pair[0])]

    def _best_path(self, hypotheses: list[_Hypothesis]) -> list[int]:
        """Return the symbols of the best text's most probable path."""
        merged: dict[_Words, tuple[float, _Hypothesis]] = {}
        for found in hypotheses:
            words = self._append(found.words, found.partial) if found.partial else found.words
            # As in stock, a text after whose last word the worst of its hypotheses has a delimiter gets one more word,
            # which is empty and not known.
            last = words if found.partial else self._append(words, "")
            end = self._model.finish(last.state)[1] if self._lm.score_boundary else 0.0
            together = _merge(merged[words][1], found) if words in merged else found
            merged[words] = last.score + self._alpha * end * math.log(10), together
        path = max(((score + h.acoustic, h) for score, h in merged.values()), key=lambda pair: pair[0])[1].path
        symbols = []
        while path is not None:
            row, path = path
            symbols.append(row)
        return symbols[::-1]

    def _append(self, words: _Words, word: str) -> _Words:
        """Return `words` followed by a word, with the score of the language model."""
        if (longer := words.longer.get(word)) is None:
            state, score = self._model.score(words.state, self._entries.get(word, 0))
            if word not in self._known:
                score += self._lm.unk_score_offset
            longer = _Words(state, words.score + self._alpha * score * math.log(10) + self._beta)
            words.longer[word] = longer
        return longer

    def _cost_of(self, partial: str) -> float:
        """Return what a word that is not complete adds to the score: 0 if a known word begins with it."""
        if (cost := self._costs.get(partial)) is None:
            place = bisect_left(self._sorted, partial)
            is_known = place < len(self._sorted) and self._sorted[place].startswith(partial)
            cost = 0.0 if is_known else self._lm.unk_score_offset * max(1.0, len(partial) / LONG_WORD)
            self._costs[partial] = cost
        return cost

    def _without_gaps(self, path: list[int]) -> list[int]:
        """Return a path whose words are separated by one delimiter: blanks between two become delimiters."""
        last = None
        for place, row in enumerate(path):
            if row == self._delimiter:
                if last is not None:
                    path[last:place] = [row] * (place - last)
                last = place
            elif row != self._blank:
                last = None
        return path


def _merge(one: _Hypothesis, other: _Hypothesis) -> _Hypothesis:
    """Return hypotheses of the same text as one, with the path of the better one."""
    high, low = max(one.acoustic, other.acoustic), min(one.acoustic, other.acoustic)
    better = one if one.best >= other.best else other
    acoustic = high + math.log1p(math.exp(low - high))
    return one._replace(acoustic=acoustic, best=better.best, path=better.path)
