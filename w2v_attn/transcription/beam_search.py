"""Beam search with a language model, by flashlight's decoder (the extra `lm`).

It returns the words with the highest score log p(symbols | speech) + lm_weight · log10 p(words) + word_score · words.

Source: R. Collobert et al., "Wav2Letter", section 2.3; the score is that of fairseq's W2lKenLMDecoder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2v_attn.checkpoints.ctc_head import CtcHead
from w2v_attn.checkpoints.piece_tokenizers import has_spaces_in_pieces
from w2v_attn.transcription.kenlm import BEGIN, END, UNKNOWN, file_hash, load_flashlight, open_kenlm, read_words

# For LibriSpeech in the wav2vec 2.0 paper.
LM_WEIGHT, WORD_SCORE = 2.0, -1.0


@dataclass(frozen=True, kw_only=True)
class BeamSearchOptions:
    """The language model and the parameters of the search.

    Attributes:
        lm: A KenLM file, .arpa or binary; None: that of the checkpoint's processor, see `OpenBeamSearch`.
        lexicon: A text file with one word per line; None: the words of the language model.
        beam_size: Number of hypotheses that are kept.
        lm_weight: Factor of the language model's log10-probability; None: 2. With the processor's language model: of
            its natural logarithm; None: its alpha.
        word_score: Added for each word; None: -1. With the processor's language model, None: its beta.
    """

    lm: Path | None = None
    lexicon: Path | None = None
    beam_size: int = 100
    lm_weight: float | None = None
    word_score: float | None = None

    def __post_init__(self):
        if self.beam_size < 1:
            raise ValueError(f"decoder.beam_size must be 1 or above, got {self.beam_size}")


class BeamSearch:
    """A decoder that returns the symbol of each frame, restricted to the words of a lexicon.

    Args:
        options: The parameters of the search, with a language model.
        head: The checkpoint's CTC head.

    Raises:
        ValueError: the extra is not installed, the language model or the lexicon cannot be read, or the vocabulary
            cannot spell its words.
    """

    def __init__(self, options: BeamSearchOptions, head: CtcHead):
        decoder, dictionary, _ = load_flashlight()
        if options.lm is None or not options.lm.is_file():
            raise ValueError(f"there is no language model {options.lm}: expected a KenLM file (decoder.lm=4-gram.arpa)")
        delimiter = head.delimiter
        if head.has_pieces and has_spaces_in_pieces(head.symbols):
            raise ValueError(
                "the checkpoint's symbols are pieces with a space and letters, such as ' the': the search with a "
                "language model needs a symbol for the space alone. Use decoder=greedy"
            )
        if delimiter is None:
            raise ValueError("the checkpoint's vocabulary has no space between words: a language model cannot be used")
        spellings = {
            word: spelled for word in _words(options.lm, options.lexicon) if (spelled := _spell(word, head)) is not None
        }
        if not spellings:
            raise ValueError("no word of the language model can be spelled with the checkpoint's vocabulary")
        # flashlight requires an entry for unknown words; its score of -inf excludes it.
        words = dictionary.create_word_dict({**{word: [[delimiter]] for word in spellings}, UNKNOWN: [[delimiter]]})
        model = open_kenlm(options.lm, words)
        end = head.symbols[delimiter]
        trie = decoder.Trie(head.rows, end)
        start = model.start(False)
        for word, spelled in spellings.items():
            number = words.get_index(word)
            trie.insert([*spelled, end], number, model.score(start, number)[1])
        trie.smear(decoder.SmearingMode.MAX)
        self._lm_weight = LM_WEIGHT if options.lm_weight is None else options.lm_weight
        self._word_score = WORD_SCORE if options.word_score is None else options.word_score
        limits = decoder.LexiconDecoderOptions(
            beam_size=options.beam_size,
            beam_size_token=head.rows,
            beam_threshold=50.0,
            lm_weight=self._lm_weight,
            word_score=self._word_score,
            unk_score=float("-inf"),
            sil_score=0.0,
            log_add=False,
            criterion_type=decoder.CriterionType.CTC,
        )
        unknown = words.get_index(UNKNOWN)
        self._decoder = decoder.LexiconDecoder(limits, trie, model, end, head.blank, unknown, [], False)
        self._referenced = (trie, model, words)  # the decoder holds pointers to them
        self._options = options

    def describe(self) -> str:
        """Return what determines the words, with hashes of the files."""
        files = {"lm": self._options.lm, "lexicon": self._options.lexicon}
        hashes = [f"{name} {file_hash(path)}" for name, path in files.items() if path is not None]
        numbers = {"beam_size": self._options.beam_size, "lm_weight": self._lm_weight, "word_score": self._word_score}
        return ", ".join(["beam_search", *hashes, *(f"{name} {number:g}" for name, number in numbers.items())])

    def __call__(self, log_probabilities: Tensor) -> Tensor:
        """Return the symbol of each frame: float32 [frames, symbols] -> int64 [frames]."""
        frames = log_probabilities.float().contiguous()
        best = self._decoder.decode(frames.data_ptr(), *frames.shape)[0]
        return torch.tensor(best.tokens[1:-1])  # flashlight adds silence at both ends


def _spell(word: str, head: CtcHead) -> list[int] | None:
    """Return the rows of a word, in the vocabulary's case; None where it cannot be spelled."""
    for cased in (word, word.lower(), word.upper()):
        if cased in head.symbols:  # a vocabulary of words
            return [head.symbols[cased]]
        if not head.unknown_symbols(cased):
            return head.encode(cased)
    return None


def _words(lm: Path, lexicon: Path | None) -> Iterable[str]:
    if lexicon is not None:
        return read_lexicon(lexicon)
    words = read_words(lm)
    if words is None:
        raise ValueError(
            f"{lm} does not list its words: name them in a text file, one word per line (decoder.lexicon=words.txt)"
        )
    return [word for word in words if word not in (BEGIN, END)]


def read_lexicon(path: Path) -> list[str]:
    """Return the first word of each line of a text file.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"there is no lexicon {path}: expected a text file with one word per line")
    with path.open(encoding="utf-8", errors="replace") as lines:
        return [line.split()[0] for line in lines if line.strip()]
