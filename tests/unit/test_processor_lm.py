"""A language model that `Wav2Vec2ProcessorWithLM` saved gives the text that stock gives, with its own weights."""

import itertools
import json
import logging
import math
import random
import shutil

import pytest
import torch
from conftest import SPEECH, TINY
from ctc_heads import make_head

from w2v_attn import read_audio
from w2v_attn.checkpoints import hub
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.description import describe_checkpoint
from w2v_attn.checkpoints.export import export_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.checkpoints.processor_lm import check_labels, read_processor_lm
from w2v_attn.transcription.beam_search import BeamSearchOptions
from w2v_attn.transcription.load_recognizer import load_recognizer
from w2v_attn.transcription.open_beam_search import OpenBeamSearch

pytest.importorskip("flashlight.lib.text.decoder")

SYMBOLS = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}
HEAD = make_head(SYMBOLS)
LABELS = ["", " ", "a", "b", "c"]
ATTRIBUTES = {"alpha": 0.5, "beta": 1.5, "unk_score_offset": -10.0, "score_boundary": True}
BIGRAMS = {("ab", "ac"): -0.1, ("<s>", "ac"): -0.4, ("ac", "</s>"): -0.2}
UNIGRAMS = {"ab": -1.1, "ac": -0.7, "cab": -1.9, "b": -1.4}
UNKNOWN = -2.5


def write_lm(folder, labels=LABELS, unigrams=UNIGRAMS, bigrams=BIGRAMS, known=None, **attributes):
    """Write the files of a language model as pyctcdecode does; without backoff weights."""
    (folder / "language_model").mkdir(parents=True, exist_ok=True)
    lines = ["\\data\\", f"ngram 1={len(unigrams) + 3}", f"ngram 2={len(bigrams)}", "", "\\1-grams:"]
    lines += [
        f"{UNKNOWN}\t<unk>\t0",
        "-99\t<s>\t0",
        "-1\t</s>\t0",
        *(f"{p}\t{word}\t0" for word, p in unigrams.items()),
    ]
    lines += ["", "\\2-grams:", *(f"{p}\t{one} {two}" for (one, two), p in bigrams.items()), "", "\\end\\", ""]
    (folder / "language_model" / "2gram.arpa").write_text("\n".join(lines))
    words = sorted(unigrams if known is None else known)
    (folder / "language_model" / "unigrams.txt").write_text("".join(f"{word}\n" for word in words))
    (folder / "language_model" / "attrs.json").write_text(json.dumps({**ATTRIBUTES, **attributes}))
    (folder / "alphabet.json").write_text(json.dumps({"labels": labels, "is_bpe": False}))
    return folder


def search(folder, **options):
    lm = read_processor_lm(str(folder), folder)
    assert list(check_labels(lm, HEAD, "a checkpoint")) == []
    return OpenBeamSearch(lm, HEAD, BeamSearchOptions(**options))


def text_of(path):
    return HEAD.tokenizer.decode(path.tolist())


def log_probability(text, attributes, unknown_offset):
    """Return the score of the words of a text, as the definition says: alpha · ln p(words) + beta · words."""
    score, before, words = 0.0, "<s>" if attributes["score_boundary"] else None, text.split()
    for word in words:
        known = word in UNIGRAMS
        score += BIGRAMS.get((before, word), UNIGRAMS.get(word, UNKNOWN)) + (0 if known else unknown_offset)
        before = word if known else None
    if attributes["score_boundary"]:
        score += BIGRAMS.get((before, "</s>"), -1.0)
    return attributes["alpha"] * score * math.log(10) + attributes["beta"] * len(words)


def best_text(log_probabilities, attributes):
    """Return the best text over all paths, by the definition alone."""
    texts = {}
    for path in itertools.product(range(len(SYMBOLS)), repeat=len(log_probabilities)):
        collapsed = [row for row, _ in itertools.groupby(path) if row != 0]
        text = " ".join("".join(LABELS[row] for row in collapsed).split())
        probability = math.exp(sum(log_probabilities[frame, row].item() for frame, row in enumerate(path)))
        texts[text] = texts.get(text, 0.0) + probability
    # A text without words is scored as an unknown one in stock, and is not compared here.
    scored = {
        text: math.log(p) + log_probability(text, attributes, attributes["unk_score_offset"])
        for text, p in texts.items()
        if text
    }
    return max(scored, key=scored.__getitem__)


@pytest.mark.parametrize("seed", range(8))
def test_the_text_is_the_best_of_all_by_definition(tmp_path, seed):
    attributes = {**ATTRIBUTES, "unk_score_offset": -1.0, "score_boundary": seed % 2 == 0, "alpha": 0.3 + seed / 10}
    folder = write_lm(tmp_path, **attributes)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, len(SYMBOLS), generator=generator).clamp(-1.5, 1.5)
    logits[-1, :2] = -30  # a delimiter at the end is another matter: stock scores an empty word after it
    frames = logits.log_softmax(-1)
    assert text_of(search(folder)(frames)) == best_text(frames, attributes)


@pytest.mark.parametrize("seed", range(30))
def test_the_text_is_that_of_pyctcdecode(tmp_path, seed):
    pyctcdecode = pytest.importorskip("pyctcdecode")
    pytest.importorskip("kenlm")
    draw = random.Random(seed)
    known = draw.choice([None, ["ab", "ac", "elsewhere"], []])
    attributes = {
        "alpha": draw.choice([0.0, 0.5, 1.2]),
        "beta": draw.choice([-1.0, 0.0, 1.5]),
        "unk_score_offset": draw.choice([-10.0, -0.5]),
        "score_boundary": draw.random() < 0.5,
    }
    folder = write_lm(tmp_path, known=known, **attributes)
    theirs = pyctcdecode.BeamSearchDecoderCTC.load_from_dir(str(folder))
    generator = torch.Generator().manual_seed(seed)
    frames = (draw.choice([1, 4]) * torch.randn(25, len(SYMBOLS), generator=generator)).log_softmax(-1)
    size = draw.choice([100, 4])
    expected = theirs.decode_beams(frames.double().numpy(), beam_width=size)[0][0]
    assert text_of(search(folder, beam_size=size)(frames)) == expected


def test_unknown_words_are_found_and_cost_what_the_folder_says(tmp_path):
    heard = torch.full((3, len(SYMBOLS)), -4.0)
    for frame, symbol in enumerate("acb"):
        heard[frame, SYMBOLS[symbol]] = 0.0
    frames = heard.log_softmax(-1)  # "acb", which is no word
    assert text_of(search(write_lm(tmp_path / "free", alpha=0.1, unk_score_offset=0.0))(frames)) == "acb"
    assert text_of(search(write_lm(tmp_path / "costly", alpha=0.1, unk_score_offset=-100.0))(frames)) != "acb"


def test_keys_are_used_instead_of_the_folders_weights(tmp_path):
    folder = write_lm(tmp_path)
    (tmp_path / "words.txt").write_text("acb\n")
    plain = search(folder).describe()
    assert "lm_weight 0.5, word_score 1.5, unk_score_offset -10, score_boundary 1" in plain
    changed = search(folder, lm_weight=2.0, word_score=-3.0, lexicon=tmp_path / "words.txt").describe()
    assert "lm_weight 2, word_score -3" in changed
    assert changed.split(", ")[2] != plain.split(", ")[2]  # the words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled checkpoint with a language model that prefers "reads" to "red"."""
    folder = tmp_path_factory.mktemp("lm") / "checkpoint"
    shutil.copytree(TINY, folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    special = {"<pad>": "", "|": " ", "<unk>": "⁇"}
    labels = [special.get(symbol, symbol) for symbol in sorted(vocabulary, key=vocabulary.__getitem__)]
    return write_lm(folder, labels, dict.fromkeys(("play", "red", "seven"), -1.0), {})


CLIP = SPEECH / "en-029+f5" / "19-play-red-seven.flac"


def test_a_folder_with_a_language_model_needs_no_further_keys(folder):
    found = load_recognizer(folder, decoder=BeamSearchOptions()).recognize(read_audio(CLIP))
    assert found.text == "play red seven"
    plain = load_recognizer(TINY).recognize(read_audio(CLIP))
    for ours, theirs in zip(found.words, plain.words, strict=True):
        assert ours.start == pytest.approx(theirs.start, abs=0.05)


def test_greedy_says_that_there_is_a_language_model(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load_recognizer(folder)
    assert [r.getMessage() for r in caplog.records if "decoder=beam_search" in r.getMessage()] == [
        f"{folder} has a language model, which decoder=greedy does not use: decoder=beam_search does"
    ]


def test_beam_search_without_any_language_model_says_what_to_name():
    with pytest.raises(ValueError, match=r"has none \(language_model/\): name a KenLM file \(decoder\.lm="):
        load_recognizer(TINY, decoder=BeamSearchOptions())


def test_load_names_the_language_model_and_its_copy_has_it(folder, tmp_path):
    loaded = load_checkpoint(folder, with_head=True)
    assert dict(describe_checkpoint(loaded))["language model"] == (
        "KenLM (2gram.arpa), alpha 0.5, beta 1.5, unk_score_offset -10, score_boundary 1"
    )
    export_checkpoint(loaded, tmp_path / "copy")
    for name in ("alphabet.json", *(f"language_model/{n}" for n in ("2gram.arpa", "unigrams.txt", "attrs.json"))):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def _relabel(folder, change):
    alphabet = json.loads((folder / "alphabet.json").read_text())
    (folder / "alphabet.json").write_text(json.dumps(change(alphabet)))


BROKEN = {
    r"there is no language_model/\*\.arpa or \*\.bin": lambda f: (f / "language_model/2gram.arpa").unlink(),
    r"there is no language_model/attrs\.json": lambda f: (f / "language_model/attrs.json").unlink(),
    r"there is no language_model/unigrams\.txt": lambda f: (f / "language_model/unigrams.txt").unlink(),
    r"there is no alphabet\.json": lambda f: (f / "alphabet.json").unlink(),
    r"attrs\.json cannot be read": lambda f: (f / "language_model/attrs.json").write_text("{"),
    r"expected numbers alpha, beta, unk_score_offset and a true or false score_boundary, found \{'alpha'": lambda f: (
        f / "language_model/attrs.json"
    ).write_text('{"alpha": "much"}'),
    r"several language models, language_model/2gram\.arpa, language_model/3gram\.bin": lambda f: (
        f / "language_model/3gram.bin"
    ).write_bytes(b""),
    r"expected a list of strings as labels": lambda f: _relabel(f, lambda a: {**a, "labels": 5}),
    r"word pieces \(is_bpe\)": lambda f: _relabel(f, lambda a: {**a, "is_bpe": True}),
    r"labels occur twice: 'a'": lambda f: _relabel(f, lambda a: {**a, "labels": [*a["labels"], "a"]}),
    r"has 30 labels, the CTC head has 32 outputs": lambda f: _relabel(f, lambda a: {**a, "labels": a["labels"][:30]}),
    r"2 of 32 outputs: 'y' instead of 'x' \(row 29\) 'x' instead of 'y' \(row 30\)": lambda f: _relabel(
        f, lambda a: {**a, "labels": [{"x": "y", "y": "x"}.get(label, label) for label in a["labels"]]}
    ),
    r"cannot be read as a KenLM model": lambda f: (f / "language_model/2gram.arpa").write_text("no model\n"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_parts_are_named(folder, tmp_path, message):
    shutil.copytree(folder, tmp_path / "broken")
    BROKEN[message](tmp_path / "broken")
    with pytest.raises(ValueError, match=message):
        load_recognizer(tmp_path / "broken", decoder=BeamSearchOptions())
    load_recognizer(tmp_path / "broken")  # greedy works without it


def test_symbols_without_an_output_are_named(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "more")
    _relabel(tmp_path / "more", lambda a: {**a, "labels": [*a["labels"], "<mask>"]})
    with caplog.at_level(logging.WARNING):
        load_recognizer(tmp_path / "more", decoder=BeamSearchOptions())
    assert "alphabet.json names 1 symbols without an output, which are never found: <mask>" in caplog.text


def test_the_kenlm_file_of_a_hub_id_is_downloaded_when_it_is_needed(folder, tmp_path, monkeypatch):
    cached = tmp_path / "0123abcd"
    shutil.copytree(folder, cached)
    (cached / "language_model/2gram.arpa").rename(tmp_path / "2gram.arpa")
    asked = []

    class Api:
        def list_repo_files(self, name, revision):
            return ["config.json", "language_model/2gram.arpa", "language_model/attrs.json"]

    def download(name, wanted, revision):
        asked.append((name, wanted, revision))
        shutil.copyfile(tmp_path / "2gram.arpa", cached / wanted)
        return cached / wanted

    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    lm = read_processor_lm("somebody/with-lm", cached)
    assert lm.lm == cached / "language_model/2gram.arpa"
    assert asked == [("somebody/with-lm", "language_model/2gram.arpa", "0123abcd")]
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    (cached / "language_model/2gram.arpa").unlink()
    with pytest.raises(CheckpointError, match=r"not complete.*\*\.arpa|not in the cache"):
        read_processor_lm("somebody/with-lm", cached)
