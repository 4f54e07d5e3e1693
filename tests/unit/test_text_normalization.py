"""Texts become what the vocabulary can spell, by steps that are the same in training and in evaluation."""

import json
import unicodedata
from pathlib import Path

import pytest
from ctc_heads import make_head
from hypothesis import given
from hypothesis import strategies as st

from w2v_attn.corpus.rows import Row
from w2v_attn.training.options import CtcOptions
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.training.training_errors import DataError
from w2v_attn.training.vocabulary import from_head, from_texts
from w2v_attn.transcription.text_normalization import FILE, TextNormalizer, load_normalizer, make_normalizer

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
HEAD = make_head(["<pad>", "<unk>", "|", *LETTERS, "'"])
TURKISH = make_head(["<pad>", "<unk>", "|", *"abcçdefgğhıijklmnoöprsştuüvyz", "'"])


def normalizer(symbols, **options):
    return make_normalizer(make_head(["<pad>", "<unk>", "|", *symbols]), **options)


@given(st.text(max_size=40))
def test_a_normalized_text_stays_as_it_is(text):
    for head in (HEAD, TURKISH):
        normalize = make_normalizer(head)
        once = normalize(text)
        assert normalize(once) == once


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("It’s", "it's"),
        ("don`t ‘quote’", "don't ‘quote'"),  # an opening quotation mark is no apostrophe, and is reported
        ("o‘zbek", "o'zbek"),
        ("Ｗｉｄｅ", "wide"),
        ("ﬁne ﬂow", "fine flow"),
        ("soft\u00adhyphen\u200b", "softhyphen"),
        ("a\u00a0b\u3000c\t d", "a b c d"),
        ("yes|no", "yes no"),
        ("“Well,” he said… «no» – (yes)!", "well he said no yes"),
        ("¿Qué? 、。", "qué"),
    ],
)
def test_typographic_characters_become_those_of_the_vocabulary(text, normalized):
    assert make_normalizer(HEAD)(text) == normalized


def test_a_typographic_character_that_the_vocabulary_has_stays():
    assert normalizer("its’")("it’s it's") == "it’s it’s"
    assert normalizer("its’'")("it’s it's") == "it’s it's"


def test_punctuation_that_the_vocabulary_has_stays():
    assert normalizer("ab,?")("A, b? a.") == "a, b? a"
    assert normalizer("ab,?", remove_characters="[,]")("A, b?") == "a b?"


@pytest.mark.parametrize("text", ["é", "e\u0301"])
def test_the_unicode_form_is_the_vocabularys(text):
    assert normalizer("é")(text) == "é"
    assert normalizer("e\u0301")(text) == "e\u0301"
    # U+0958 is excluded from composition: NFC would take it apart.
    assert normalizer("\u0958é")("\u0915\u093c" + text) == "\u0958é"
    assert unicodedata.normalize("NFC", "\u0958") != "\u0958"


def test_both_forms_of_a_text_are_spelled_alike():
    syllable = "각"
    for symbols in (
        "\u0958",
        "\u0915\u093c",
        "é",
        "e\u0301",
        syllable,
        unicodedata.normalize("NFD", syllable),
        "g\u0301",
    ):
        head = make_head(["<pad>", "|", *symbols, "ü"] if "g" in symbols else ["<pad>", "|", *symbols])
        normalize = make_normalizer(head)
        for form in ("NFC", "NFD"):
            assert not head.unknown_symbols(normalize(unicodedata.normalize(form, symbols))), (symbols, form)


@pytest.mark.parametrize(
    ("options", "text", "normalized"),
    [
        ({"language": "tr"}, "İZMİR Işık", "izmir ışık"),
        ({"language": "tur"}, "ISPARTA", "ısparta"),
        ({"language": "azj-script_latin"}, "I İ", "ı i"),
        ({"language": "en"}, "İzmir IS", "izmir is"),
        ({"texts": ["İstanbul'da ılık bir gün", "Işık İzmir'de"]}, "ISPARTA", "ısparta"),
        ({"texts": ["I am in Istanbul, I think it is fine, isn't it, İzmir"] * 9}, "IS İ", "is i"),
        ({}, "ISPARTA", "ısparta"),  # the vocabulary has a dotless i
    ],
)
def test_the_case_of_i_suits_the_language(options, text, normalized):
    assert make_normalizer(TURKISH, **options)(text) == normalized


def test_upper_case_of_i_suits_the_language():
    upper = make_head(["<pad>", "|", *"ABIİRZMŞK"])
    assert make_normalizer(upper, language="tr")("izmir ışık") == "İZMİR IŞIK"


def test_a_new_vocabulary_from_turkish_texts_has_no_combining_dot():
    made = from_texts(["İstanbul'da ılık bir gün", "Işık İzmir'de", "iki kişi", "ISPARTA"], unit="characters")
    assert "\u0307" not in made.symbols
    assert made.normalize("ISPARTA İZMİR") == "ısparta izmir"


def test_a_new_vocabulary_has_one_apostrophe():
    made = from_texts(["it’s", "it's"], unit="characters")
    assert "’" not in made.symbols
    assert made.normalize("it’s") == "it's"
    assert "’" in from_texts(["it’s"], unit="characters").symbols


def test_a_map_of_the_user_is_added():
    normalize = make_normalizer(make_head(["<pad>", "|", *"еж'"]), character_map={"ё": "е", "’": ""})
    assert normalize("ёж’ж") == "ежж"
    with pytest.raises(DataError, match="replaces single characters, got 'ab'"):
        Ctc.from_data(CtcOptions(character_map={"ab": "c"}), [Row("a", Path("a"), text="a")], None)


def test_phones_stay_as_they_are():
    head = make_head(
        ["<pad>", "<unk>", "tʃ", "ç", ".", "N"],
        {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "do_phonemize": True},
    )
    assert make_normalizer(head)("tʃ  ç .  N") == "tʃ ç . N"


def test_steps_are_in_words_and_name_what_texts_have():
    steps = list(make_normalizer(HEAD).steps(["It’s | fine, isn't it?"]))
    assert steps == ["Unicode NFC", "map ’ → '", "lower case", "remove , ?", "| is a space", "single spaces"]
    assert "map U+200B → nothing" in list(make_normalizer(HEAD).steps(["a\u200b"]))


def test_digits_and_code_points_are_reported():
    rows = [Row("a", Path("a"), text="room 101"), Row("b", Path("b"), text="naïve")]
    vocabulary = from_head(HEAD)
    described = dict(Ctc(vocabulary).describe(rows))
    assert described["outside the vocabulary"] == (
        "in 2 of 2 texts: '1' × 2, '0' × 1, 'ï' × 1 (U+00EF) (digits: write numbers as words)"
    )


def test_evaluation_normalizes_as_training_did(tmp_path):
    rows = [Row("a", Path("a"), text="It’s ё!")]
    made = Ctc(from_texts(["it's e"], unit="characters", character_map={"ё": "e"}, remove_characters="auto"))
    made.save(tmp_path)
    read = Ctc.from_head(HEAD, CtcOptions(), rows, tmp_path)
    assert read.reference(rows[0]) == made.reference(rows[0]) == "it's e"
    # What is asked for in evaluation goes before.
    assert Ctc.from_head(HEAD, CtcOptions(case="upper"), rows, tmp_path).reference(rows[0]) == "IT'S E"
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match="is not valid"):
        load_normalizer(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"unheard": 1}))
    with pytest.raises(ValueError, match="is not valid"):
        load_normalizer(tmp_path)


def test_a_saved_normalization_comes_back(tmp_path):
    made = TextNormalizer("NFD", {"a": "b"}, {"’": "'"}, "upper", True, "[x]", "|")
    made.save(tmp_path)
    assert load_normalizer(tmp_path) == made
    assert load_normalizer(tmp_path / "absent") is None


def test_texts_without_words_are_measured_by_characters():
    # jiwer #52
    head = make_head(["<pad>", "|", *"他们自称行动不便ab"])
    assert Ctc(from_head(head), texts=["他们自称", "行动"]).best_metric == "cer"
    assert Ctc(from_head(head), texts=["ab", "a"]).best_metric == "wer"
    assert Ctc(from_head(head), texts=["他们 自称", "行动"]).best_metric == "wer"


@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_row_without_a_text_is_dropped_with_a_reason(text):
    task = Ctc(from_texts(["a"], unit="characters"))
    assert "text" in task.unusable_reason(Row("a", Path("a"), text=text), 9)
    assert not task.is_labelled(Row("a", Path("a"), text=text))
