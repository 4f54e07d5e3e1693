"""The recogniser of CTC heads, which gives text and words with their times."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.transcription.outputs import Transcript, Word
from w2v_attn.transcription.recognizer import Recognizer


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
