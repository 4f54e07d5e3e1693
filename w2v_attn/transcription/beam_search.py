"""Beam search with a language model, by flashlight's decoder (the extra `lm`).

It returns the words with the highest score log p(symbols | speech) + lm_weight · log p(words) + word_score · words.

Source: R. Collobert et al., "Wav2Letter", section 2.3; the score is that of fairseq's W2lKenLMDecoder.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.ctc_head import CtcHead
from w2v_attn.checkpoints.piece_tokenizers import has_spaces_in_pieces

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


@dataclass(frozen=True, kw_only=True)
class BeamSearchOptions:
    """The language model and the parameters of the search.

    Attributes:
        lm: A KenLM file, .arpa or binary.
        lexicon: A text file with one word per line; None: the words of the .arpa.
        beam_size: Number of hypotheses that are kept.
        lm_weight: Weight of the language model's log-probability; 2 for LibriSpeech in the wav2vec 2.0 paper.
        word_score: Added for each word; -1 for LibriSpeech in the wav2vec 2.0 paper.
    """

    lm: Path
    lexicon: Path | None = None
    beam_size: int = 100
    lm_weight: float = 2.0
    word_score: float = -1.0


class BeamSearch:
    """A decoder that returns the symbol of each frame, restricted to the words of a lexicon.

    Args:
        options: The language model and the parameters of the search.
        head: The checkpoint's CTC head.

    Raises:
        ValueError: the extra is not installed, the language model or the lexicon cannot be read, or the vocabulary
            cannot spell its words.
    """

    def __init__(self, options: BeamSearchOptions, head: CtcHead):
        decoder, create_word_dict, language_models = _flashlight()
        if not options.lm.is_file():
            raise ValueError(f"there is no language model {options.lm}: expected a KenLM file (decoder.lm=4-gram.arpa)")
        if options.beam_size < 1:
            raise ValueError(f"decoder.beam_size must be 1 or above, got {options.beam_size}")
        delimiter = head.delimiter
        if head.has_pieces and has_spaces_in_pieces(head.symbols):
            raise ValueError(
                "the checkpoint's symbols are pieces with a space and letters, such as ' the': the search with a "
                "language model needs a symbol for the space alone. Use decoder=greedy"
            )
        if delimiter is None:
            raise ValueError("the checkpoint's vocabulary has no space between words: a language model cannot be used")
        spellings = {word: spelled for word in _words(options) if (spelled := _spell(word, head)) is not None}
        if not spellings:
            raise ValueError("no word of the language model can be spelled with the checkpoint's vocabulary")
        # flashlight requires an entry for unknown words; its score of -inf excludes it.
        words = create_word_dict({**{word: [[delimiter]] for word in spellings}, UNKNOWN: [[delimiter]]})
        try:
            model = language_models.KenLM(str(options.lm), words)
        except RuntimeError as error:
            raise ValueError(f"{options.lm} cannot be read as a KenLM model: {error}") from error
        end = head.symbols[delimiter]
        trie = decoder.Trie(head.rows, end)
        start = model.start(False)
        for word, spelled in spellings.items():
            number = words.get_index(word)
            trie.insert([*spelled, end], number, model.score(start, number)[1])
        trie.smear(decoder.SmearingMode.MAX)
        limits = decoder.LexiconDecoderOptions(
            beam_size=options.beam_size,
            beam_size_token=head.rows,
            beam_threshold=50.0,
            lm_weight=options.lm_weight,
            word_score=options.word_score,
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
        options = self._options
        files = [("lm", options.lm), *([("lexicon", options.lexicon)] if options.lexicon is not None else [])]
        hashes = [f"{name} {_hash(path)}" for name, path in files]
        numbers = [f"{name} {getattr(options, name):g}" for name in ("beam_size", "lm_weight", "word_score")]
        return ", ".join(["beam_search", *hashes, *numbers])

    def __call__(self, log_probabilities: Tensor) -> Tensor:
        """Return the symbol of each frame: float32 [frames, symbols] -> int64 [frames]."""
        frames = log_probabilities.float().contiguous()
        best = self._decoder.decode(frames.data_ptr(), *frames.shape)[0]
        return torch.tensor(best.tokens[1:-1])  # flashlight adds silence at both ends


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flashlight() -> tuple[Any, Any, Any]:
    try:
        from flashlight.lib.text import decoder  # type: ignore[import-not-found]
        from flashlight.lib.text.decoder import kenlm  # type: ignore[import-not-found]
        from flashlight.lib.text.dictionary import create_word_dict  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("a language model needs flashlight's decoder: pip install 'w2v_attn[lm]'") from error
    return decoder, create_word_dict, kenlm


def _spell(word: str, head: CtcHead) -> list[int] | None:
    """Return the rows of a word, in the vocabulary's case; None where it cannot be spelled."""
    for cased in (word, word.lower(), word.upper()):
        if cased in head.symbols:  # a vocabulary of words
            return [head.symbols[cased]]
        if not head.unknown_symbols(cased):
            return head.encode(cased)
    return None


def _words(options: BeamSearchOptions) -> Iterator[str]:
    path = options.lexicon or options.lm
    if not path.is_file():
        raise ValueError(f"there is no lexicon {path}: expected a text file with one word per line")
    if options.lexicon is None and path.suffix.lower() != ".arpa":
        raise ValueError(
            f"{path} does not list its words: name them in a text file, one word per line (decoder.lexicon=words.txt)"
        )
    with path.open(encoding="utf-8", errors="replace") as lines:
        if options.lexicon is not None:
            yield from (line.split()[0] for line in lines if line.strip())
            return
        inside = False
        for line in lines:
            if line.startswith("\\"):
                inside = line.strip() == "\\1-grams:"
            elif inside and line.strip():
                word = [*line.split(), "", ""][1]
                if not word:
                    raise ValueError(f"{path} is damaged: expected a score and a word, found {line.strip()!r}")
                if word not in (UNKNOWN, BEGIN, END):
                    yield word
