"""A language model decides between words that sound alike; without one, or with a uniform one, nothing changes."""

import pytest
import torch
from conftest import SPEECH, TINY
from ctc_heads import make_head

from w2v_attn import read_audio
from w2v_attn.transcription.beam_search import BeamSearch, BeamSearchOptions
from w2v_attn.transcription.load_recognizer import load_recognizer

pytest.importorskip("flashlight.lib.text.decoder")

SYMBOLS = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}
HEAD = make_head(SYMBOLS)


def arpa(folder, unigrams, bigrams=()):
    lines = ["\\data\\", f"ngram 1={len(unigrams) + 3}", f"ngram 2={len(bigrams)}", "", "\\1-grams:"]
    lines += ["-2\t<unk>\t0", "-99\t<s>\t0", "-1\t</s>\t0"]
    lines += [f"{score}\t{word}\t0" for word, score in unigrams.items()]
    lines += ["", "\\2-grams:", *(f"{score}\t{words}" for words, score in bigrams), "", "\\end\\", ""]
    path = folder / "lm.arpa"
    path.write_text("\n".join(lines))
    return path


def frames(*best):
    """Return log-probabilities in which each frame has one symbol, or two equally probable ones."""
    rows = torch.full((len(best), len(SYMBOLS)), -9.0)
    for row, said in zip(rows, best, strict=True):
        for symbol in said:
            row[SYMBOLS[symbol]] = 0.0
    return rows.log_softmax(-1)


def words(search, log_probabilities):
    names = {number: symbol for symbol, number in SYMBOLS.items()}
    path = search(log_probabilities)
    assert path.shape == log_probabilities.shape[:1]
    collapsed = [int(n) for n, before in zip(path, [-1, *path[:-1]], strict=True) if n != before and n != 0]
    return "".join(names[n] for n in collapsed).strip("|").split("|")


def test_the_language_model_decides_between_what_sounds_alike(tmp_path):
    heard = frames("a", ["b", "c"], "|")
    for likely, unlikely in (("ab", "ac"), ("ac", "ab")):
        path = arpa(tmp_path, {likely: -0.1, unlikely: -3})
        search = BeamSearch(BeamSearchOptions(lm=path), HEAD)
        assert words(search, heard) == [likely]


def test_the_words_before_count(tmp_path):
    path = arpa(tmp_path, {"a": -1, "b": -1, "c": -1}, [("a b", -0.01), ("b c", -0.01)])
    search = BeamSearch(BeamSearchOptions(lm=path), HEAD)
    assert words(search, frames("a", "|", ["b", "c"], "|")) == ["a", "b"]
    assert words(search, frames("b", "|", ["b", "c"], "|")) == ["b", "c"]


def test_only_words_of_the_lexicon_are_found(tmp_path):
    path = arpa(tmp_path, {"ab": -1, "ac": -1, "ÄX": -1})
    (tmp_path / "words.txt").write_text("ac\n\n")
    options = BeamSearchOptions(lm=path, lexicon=tmp_path / "words.txt")
    search = BeamSearch(options, HEAD)
    assert words(search, frames("a", "b", "|")) == ["ac"]


def test_speech_is_heard_as_before_with_a_language_model_of_its_words(tmp_path):
    path = arpa(tmp_path, dict.fromkeys(("play", "red", "seven", "SEVENTY"), -1))
    options = BeamSearchOptions(lm=path, lm_weight=0.5)
    wave = read_audio(SPEECH / "en-029+f5" / "19-play-red-seven.flac")
    plain, found = load_recognizer(TINY).recognize(wave), load_recognizer(TINY, decoder=options).recognize(wave)
    assert found.text == plain.text == "play red seven"
    for ours, theirs in zip(found.words, plain.words, strict=True):
        assert ours.start == pytest.approx(theirs.start, abs=0.05)


def test_unusable_language_models_and_lexicons_are_an_error(tmp_path):
    def search(**options):
        BeamSearch(BeamSearchOptions(**options), HEAD)

    with pytest.raises(ValueError, match="there is no language model"):
        search(lm=tmp_path / "absent.arpa")
    (tmp_path / "lm.bin").write_bytes(b"mmap lm")
    with pytest.raises(ValueError, match=r"does not list its words.*lexicon=words\.txt"):
        search(lm=tmp_path / "lm.bin")
    with pytest.raises(ValueError, match="there is no lexicon"):
        search(lm=tmp_path / "lm.bin", lexicon=tmp_path / "absent")
    with pytest.raises(ValueError, match="can be spelled"):
        search(lm=arpa(tmp_path, {"xyz": -1}))
    with pytest.raises(ValueError, match=r"decoder\.beam_size must be 1 or above"):
        search(lm=arpa(tmp_path, {"ab": -1}), beam_size=0)
