"""The recogniser of CTC heads, which gives text and words with their times."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import regex
from torch import Tensor

from w2v_attn.checkpoints.ctc_head import CtcHead
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.transcription.beam_search import BeamSearch
from w2v_attn.transcription.open_beam_search import OpenBeamSearch
from w2v_attn.transcription.outputs import Transcript, Word
from w2v_attn.transcription.recognizer import Recognizer

# Options of a tokenizer that change the text of the same symbols.
TOKENIZER_OPTIONS = (
    "bos_token eos_token unk_token pad_token word_delimiter_token replace_word_delimiter_char phone_delimiter_token "
    "do_lower_case target_lang clean_up_tokenization_spaces"
).split()

# A character of a script that is written without spaces between words, with its combining marks.
UNSPACED = regex.compile(
    r"(?:\p{Han}|\p{Hiragana}|\p{Katakana}|\p{Thai}|\p{Lao}|\p{Khmer}|\p{Myanmar}|\p{Tibetan}|\p{Yi}|ー)\p{M}*"
)
CHARACTER = regex.compile(r"\X")
# Characters of such a script up to which a stretch between two delimiters is taken to be a word.
MAX_UNSPACED_WORD = 12


class Letter(NamedTuple):
    """One or several letters of a text: a symbol, without repetitions and blanks. Times are frames."""

    text: str
    start: int
    end: int


def greedy(log_probabilities: Tensor) -> Tensor:
    """Return the most probable symbol of each frame, int64 [frames].

    Source: A. Graves et al., "Connectionist Temporal Classification", section 3.2, best path decoding.
    """
    return log_probabilities.argmax(-1)


class CtcRecognizer(Recognizer):
    """A recogniser with a CTC head: the symbols of a path through the frames, without repetitions and blanks.

    Args:
        checkpoint: The loaded model.
        head: Its head, which turns symbols into text.
        search: The decoder: float32 [frames, symbols] of log-probabilities -> int64 [frames].
        options: See `WaveformModel`.
    """

    def __init__(
        self, checkpoint: Checkpoint, head: CtcHead, *, search: Callable[[Tensor], Tensor] = greedy, **options: Any
    ):
        super().__init__(checkpoint, **options)
        self.head, self._search = head, search

    def describe_decoding(self) -> dict[str, str]:
        """See `Recognizer`."""
        head, tokenizer = self.head, self.head.tokenizer
        options = {name: value for name, value in tokenizer.init_kwargs.items() if name in TOKENIZER_OPTIONS}
        about = [type(tokenizer).__name__, head.rows, head.blank, head.delimiter, sorted(head.symbols.items()), options]
        described = json.dumps(about, sort_keys=True, default=str)
        search = self._search
        decoder = search.describe() if isinstance(search, BeamSearch | OpenBeamSearch) else "greedy"
        return {"vocabulary": hashlib.sha256(described.encode()).hexdigest(), "decoder": decoder}

    def decode(self, log_probabilities: Tensor) -> Transcript:
        """Return the text of stock's tokenizer, and its words with their times."""
        symbols = self._search(log_probabilities)
        best = log_probabilities.gather(-1, symbols[:, None])[:, 0]
        decoded, found = self.head.decode(symbols.tolist())
        letters = [Letter(*letter) for letter in found]
        rate = self.frame_rate()
        words = []
        for joiner, word in split_words(self.head, decoded, letters):
            first, end = word[0].start, word[-1].end
            score = round(best[first:end].exp().mean().item(), 4)
            text = "".join(letter.text for letter in word)
            words.append(Word(text, round(first / rate, 3), round(end / rate, 3), score, joiner))
        return Transcript(decoded, round(best.mean().exp().item(), 4), tuple(words))


def split_words(head: CtcHead, text: str, letters: Sequence[Letter]) -> Iterator[tuple[str, list[Letter]]]:
    """Yield (joiner, letters) of each word of a text; joiners and letters in their order are the text.

    Words are what delimiters separate; with a phoneme tokenizer, phones. Where there are no delimiters, each symbol is
    one; and in scripts without spaces each character, unless delimiters separate short words of them.

    Args:
        head: The head that the letters come from.
        text: The text of the tokenizer, which may have changed case and removed spaces.
        letters: The symbols, including delimiters.
    """
    if head.is_phonetic:
        for number, letter in enumerate(letters):
            yield ("" if number == 0 else " "), [letter]
        return
    runs = list(_runs(text, letters, head.written_delimiter))
    for joiner, run in runs:
        short = len(runs) > 1 and sum(len(letter.text) for letter in run) <= MAX_UNSPACED_WORD
        characters = _characters(run, every=not head.has_spaces)
        for piece in [run] if short else characters:
            yield joiner, piece
            joiner = ""


def _runs(text: str, letters: Sequence[Letter], delimiter: str) -> Iterator[tuple[str, list[Letter]]]:
    """Yield (joiner, letters) of each run of the text without a delimiter.

    Letters are found by their lengths, since the tokenizer may have lower-cased the text or removed spaces.
    """
    position, joiner, run = 0, "", []
    for letter in letters:
        if letter.text.isspace():
            continue
        start = position
        while start < len(text) and text[start].isspace():
            start += 1
        if run and (start > position or letter.text == delimiter):
            yield joiner, run
            joiner, run = "", []
        end = start + len(letter.text)
        if letter.text == delimiter:
            joiner += text[position:end]
        else:
            joiner += text[position:start]
            run.append(letter._replace(text=text[start:end]))
        position = end
    if run:
        yield joiner, run


def _characters(run: Sequence[Letter], every: bool) -> Iterator[list[Letter]]:
    """Yield the letters of each character of a script without spaces, and of each stretch between such characters.

    every: Yield the letters of each character of any script.
    """
    text = "".join(letter.text for letter in run)
    ends, total = [], 0
    for letter in run:
        total += len(letter.text)
        ends.append(total)
    cuts = {0, len(text)}
    for found in (CHARACTER if every else UNSPACED).finditer(text):
        cuts |= {found.start(), found.end()}
    piece: list[Letter] = []
    for letter, end in zip(run, ends, strict=True):
        piece.append(letter)
        if end in cuts:
            yield piece
            piece = []
    if piece:
        yield piece
