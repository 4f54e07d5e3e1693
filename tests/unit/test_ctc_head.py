"""A CTC head is what logits, config and tokenizer say together: its targets, texts and words against stock's."""

import json

import pytest
from ctc_heads import make_head, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.ctc_head import describe_ctc_head
from w2v_attn.checkpoints.tokenizers import read_tokenizer
from w2v_attn.transcription.ctc_recognizer import Letter, split_words

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
CTC = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
PHONES = {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "phonemizer_backend": "espeak", "do_phonemize": True}
SCRIPTS = ("abcdeçéß", "ABCDEÉ", "абвгдё", "αβγς", "اب تثی", "কখগ়া", "กขคงา", "的一是不了", "かきくガ", "'-0123")
LONG = ("ch", "sh", "th", "ng", "aa", "[noise]", "<laugh>", "க்", "कि")
NAMES = {
    "plain": {"pad": "<pad>", "unk": "<unk>", "delimiter": "|", "bos": "<s>", "eos": "</s>"},
    "brackets": {"pad": "[PAD]", "unk": "[UNK]", "delimiter": "|", "bos": "<s>", "eos": "</s>"},
    "space": {"pad": "<pad>", "unk": "<unk>", "delimiter": " ", "bos": "<s>", "eos": "</s>"},
    "tag": {"pad": "<blank>", "unk": "<unk>", "delimiter": "<space>", "bos": "<s>", "eos": "</s>"},
}


@st.composite
def vocabularies(draw):
    """Draw (symbols, tokenizer config, text alphabet): any script, names, long symbols, and options."""
    names = NAMES[draw(st.sampled_from(sorted(NAMES)))]
    letters = draw(st.lists(st.sampled_from("".join(SCRIPTS)), min_size=1, max_size=25, unique=True))
    long = draw(st.lists(st.sampled_from(LONG), max_size=4, unique=True))
    config = dict(CTC)
    special = []
    for key in ("pad", "unk", "delimiter", "bos", "eos"):
        config["word_delimiter_token" if key == "delimiter" else f"{key}_token"] = names[key]
        # Sentence symbols are often absent; without the others a head has no unknown symbol or no delimiter.
        if key == "pad" or draw(st.integers(0, 3)):
            special.append(names[key])
    if draw(st.booleans()):
        config["do_lower_case"] = True
    if draw(st.booleans()):
        config["replace_word_delimiter_char"] = draw(st.sampled_from([" ", "_", ""]))
    if draw(st.booleans()):
        config["clean_up_tokenization_spaces"] = True
    symbols = draw(
        st.permutations([s for s in dict.fromkeys([*special, *letters, *long]) if s != " " or " " in special])
    )
    alphabet = st.sampled_from([*[s for s in letters if s != " "], *long, " ", " ", "z"])
    return symbols, config, st.lists(alphabet, max_size=12).map("".join)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_targets_are_those_of_the_checkpoints_tokenizer(data):
    symbols, config, texts = data.draw(vocabularies())
    head = make_head(symbols, config)
    stock = make_tokenizer(symbols, config)
    for _ in range(3):
        text = " ".join(data.draw(texts).split())
        if head.delimiter is None:
            text = text.replace(" ", "")
            stock.word_delimiter_token = " "  # stock cannot tokenize without a delimiter
        # Stock drops a space beside a symbol of several letters, unless it is written as the delimiter.
        stock.do_lower_case = head.upper_cases
        theirs = stock.convert_tokens_to_ids(stock.tokenize(text.replace(" ", head.delimiter or " ")))
        unusable = {None, stock.convert_tokens_to_ids(stock.unk_token), head.blank}
        if head.unit == "words":
            # Words are whole symbols; a tokenizer also finds symbols inside unknown words, and drops a delimiter that
            # is the space itself beside a symbol of several letters.
            drops = head.delimiter == " " and " " in text
            if not drops and not head.unknown_symbols(text) and all(len(word) > 1 for word in text.split()):
                assert head.encode(text) == theirs
        elif head.unknown_symbols(text):
            assert any(number in unusable or number >= head.rows for number in theirs)
        else:
            assert head.encode(text) == theirs


@given(
    st.lists(st.sampled_from(["s", "t", "aɪ", "oʊ", "ɔːɹ", "zz", "<unk>"]), max_size=9), st.sampled_from([None, "|"])
)
@settings(deadline=None)
def test_targets_of_a_phoneme_tokenizer_are_stocks_without_its_phonemizer(phones, delimiter):
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "|", "s", "t", "aɪ", "oʊ", "ɔːɹ"]
    config = PHONES | {"word_delimiter_token": delimiter, "phone_delimiter_token": " ", "pad_token": "<pad>"}
    head, stock = make_head(symbols, config), make_tokenizer(symbols, config)
    text = " ".join(phones)
    assert (head.unknown_symbols(text)["zz"] > 0) == ("zz" in phones)
    if "zz" not in phones:
        assert head.encode(text) == stock(text, do_phonemize=False).input_ids


def test_a_space_beside_a_symbol_of_several_letters_is_kept():
    head = make_head(["<pad>", "<unk>", "|", *LETTERS, "ch", "sh", "th", "ng"], CTC)
    assert head.split("she thinks long") == [*"sh e | th i n k s | l o ng".split()]
    stock = make_tokenizer(["<pad>", "<unk>", "|", *LETTERS, "ch", "sh", "th", "ng"], CTC)
    assert (
        stock.tokenize("she thinks") == "sh e th i n k s".split()
    )  # what stock makes of it, which decodes without spaces
    assert stock.decode(head.encode("she thinks")) == "she thinks"


# -------------------------------------------------------------------------------------------- text and words


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_words_and_joiners_are_the_text_of_stocks_tokenizer(data):
    symbols, config, _ = data.draw(vocabularies())
    rows = len(symbols) + data.draw(st.integers(0, 2))
    head = make_head(symbols, config, rows=rows)
    path = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=40))
    stock = make_tokenizer(symbols, config)
    theirs = stock.decode(path, output_char_offsets=True)
    letters = [Letter(o["char"], o["start_offset"], o["end_offset"]) for o in theirs.char_offsets]
    words = list(split_words(head, theirs.text, letters))
    joined = "".join(joiner + "".join(letter.text for letter in word) for joiner, word in words)
    gap = config.get("replace_word_delimiter_char", " ")
    assert joined == theirs.text or joined == theirs.text.rstrip(gap)
    times = [(word[0].start, word[-1].end) for _, word in words]
    assert times == sorted(times)
    assert all(first < end for first, end in times)


def words_of(head, symbols):
    """Return the words of a path with one frame per symbol and a blank after each."""
    path = [row for symbol in symbols for row in (head.symbols[symbol], head.blank)]
    decoded = head.tokenizer.decode(path, output_char_offsets=True)
    letters = [Letter(o["char"], o["start_offset"], o["end_offset"]) for o in decoded.char_offsets]
    return ["".join(letter.text for letter in word) for _, word in split_words(head, decoded.text, letters)]


def test_words_where_there_are_delimiters_and_characters_elsewhere():
    head = make_head(["<pad>", "|", *"的一是不了人我在hi", "ก", "\u0e48"], CTC)
    assert words_of(head, "我在") == ["我", "在"]
    assert words_of(head, "我在|不了") == ["我在", "不了"]
    assert words_of(head, "的一是不了人我在的一是不了人|不了") == [*"的一是不了人我在的一是不了人", "不了"]
    assert words_of(head, "hi我在") == ["hi", "我", "在"]
    assert words_of(head, "hi|hi") == ["hi", "hi"]
    assert words_of(head, "กก\u0e48ก") == ["ก", "ก\u0e48", "ก"]
    without = make_head(["<pad>", *"abc"], CTC | {"word_delimiter_token": None})
    assert words_of(without, "abca") == ["a", "b", "c", "a"]


def test_words_of_a_phoneme_tokenizer_are_its_phones():
    head = make_head(["<s>", "<pad>", "</s>", "<unk>", "aɪ", "t"], PHONES | {"word_delimiter_token": None})
    assert words_of(head, ["t", "aɪ", "t"]) == ["t", "aɪ", "t"]
    assert dict(describe_ctc_head(head))["symbols"].startswith("2 phones")


def test_words_are_in_the_case_of_the_text():
    head = make_head(["<pad>", "|", *"HI"], CTC | {"do_lower_case": True})
    assert words_of(head, "HI|HI") == ["hi", "hi"]
    assert head.split("hi hi") == [*"HI|HI"]


# --------------------------------------------------------------------------------- agreement of the three sources


def test_rows_are_those_of_the_logits_whatever_the_tokenizer_adds():
    head = make_head(["<pad>", "<unk>", "|", *LETTERS], CTC)
    assert head.rows == 29
    assert "<s>" not in head.symbols
    assert head.warnings == ()


def test_the_blank_is_configs_where_the_tokenizer_does_not_know_it():
    head = make_head([*LETTERS, "|", "[UNK]", "[PAD]"], config_blank=28)
    assert (head.blank, head.blank_symbol, head.tokenizer.pad_token) == (28, "[PAD]", "[PAD]")
    assert "as config.json says" in head.warnings[0]
    assert head.tokenizer.decode([0, 28, 0, 0]) == "aa"
    assert head.unknown_symbols("é") == {"é": 1}


def test_a_blank_that_only_its_name_tells_is_named():
    head = make_head([*LETTERS, "|", "[PAD]"], config_blank=0)  # transformers' default
    assert head.blank == 27
    assert "by its name" in head.warnings[0]


def test_a_blank_outside_the_logits_is_an_error_that_says_where_to_set_it():
    with pytest.raises(
        CheckpointError, match=r"blank is unknown.*has no row.*pad_token_id.*is 99.*tokenizer_config\.json"
    ):
        make_head([*LETTERS, "|"], config_blank=99)


def test_blanks_that_disagree_are_named_and_decoding_stays_stocks():
    head = make_head(["<pad>", "|", *LETTERS], CTC, config_blank=5)
    assert head.blank == 0
    assert "config.json says that the blank is row 5" in head.warnings[0]


def test_symbols_without_rows_and_rows_without_symbols_are_named():
    head = make_head(["<pad>", "|", *LETTERS, "é"], CTC, rows=28)
    assert "1 symbols of the vocabulary have no row" in head.warnings[0]
    assert head.unknown_symbols("é") == {"é": 1}
    head = make_head(["<pad>", "|", *LETTERS], CTC, rows=33)
    assert "2 of 33 outputs of the head have no symbol, and are written as <unk>: rows 31 32" in head.warnings[0]
    head = make_head({"<pad>": 0, "|": 1, "a": 2, "b": 2}, CTC)
    assert any("several symbols have row 2: a b" in warning for warning in head.warnings)


def test_a_symbol_in_the_row_of_the_blank_is_left_out():
    # transformers #15275: a text with | gave [PAD] and <s> one row, and <s> was written for each blank.
    config = CTC | {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    head = make_head({"a": 0, "|": 1, "[UNK]": 2, "[PAD]": 3, "<s>": 3}, config, rows=4)
    assert head.tokenizer.decode([0, 3, 0, 3]) == "aa"
    assert "shares row 3 with <s>, which is left out" in head.warnings[0]


@pytest.mark.parametrize("delimiter", ["|", None])
def test_phones_in_a_ctc_tokenizer_are_found_by_the_longest_match(delimiter):
    # transformers #10942
    head = make_head(["<pad>", "<unk>", "|", "ʈʰ", "æ", "æ̃", "˧", "k", "kʰ"], CTC | {"word_delimiter_token": delimiter})
    joined = "ʈʰ æ̃ ˧ kʰ k".split()
    assert (
        head.split("ʈʰ æ̃ ˧ kʰ k")
        == [s for p in joined for s in ([delimiter] if delimiter else []) + [p]][1 if delimiter else 0 :]
    )
    assert head.split("ʈʰæ̃ kʰ") == ["ʈʰ", "æ̃", *([delimiter] if delimiter else []), "kʰ"]


def test_repeated_letters_need_a_frame_for_the_blank_between_them():
    # transformers #19230 #10619
    head = make_head(["<pad>", "|", *LETTERS], CTC)
    e = head.symbols["e"]
    assert head.encode("ee") == [e, e]
    assert head.tokenizer.decode([e, head.blank, e]) == "ee"
    assert head.tokenizer.decode([e, e]) == "e"


def test_a_head_without_a_row_for_its_delimiter_has_none():
    head = make_head(["<pad>", *"的一是"], CTC)
    assert head.delimiter is None
    assert head.split("的 一") == ["的", "一"]
    assert "no row for the word delimiter |" in head.warnings[0]


def test_a_space_that_is_a_symbol_is_the_delimiter():
    head = make_head(["<pad>", "<unk>", " ", "a", "b"], CTC)
    assert head.delimiter == " "
    assert head.split("a b") == ["a", " ", "b"]
    assert head.warnings == ()


def test_a_vocabulary_of_words_stays_one_when_a_symbol_is_left_out():
    symbols = {"<pad>": 0, "|": 1, "a": 2, "ab": 3, "b": 4, "<s>": 0}
    head = make_head(symbols, CTC | {"symbol_unit": "words"}, rows=5)
    assert head.unit == "words"
    assert "<s>" not in head.symbols


@pytest.mark.parametrize(("symbols", "blank"), [(["a", "b", "|"], 0), (["a", "b", "|"], 2)])
def test_a_letter_by_default_and_the_delimiter_are_no_blank(symbols, blank):
    with pytest.raises(CheckpointError, match="which is no row of a blank"):
        make_head(symbols, config_blank=blank)


def test_special_symbols_in_a_text_are_no_letters():
    head = make_head(["<pad>", "<unk>", "|", *LETTERS], CTC)
    assert head.unknown_symbols("a<pad>b") == {"<pad>": 1}


def test_a_lower_case_vocabulary_is_not_upper_cased():
    head = make_head(["<pad>", "|", *LETTERS], CTC | {"do_lower_case": True})
    assert head.split("ab") == ["a", "b"]
    assert "do_lower_case" in head.warnings[0]


def test_a_vocabulary_of_syllables_is_not_one_of_words():
    assert make_head(["<pad>", "|", "க்", "கி", "கா"], CTC).unit == "characters"
    assert make_head(["<pad>", "|", "yes", "no", "left"], CTC).unit == "words"


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        (["a", "b"], "expected an object, found a list"),
        ({"a": "0"}, "expected an output number for each symbol"),
        ({"a": -1}, "expected an output number for each symbol"),
        ({"a": 1.5}, "expected an output number for each symbol"),
    ],
)
def test_a_vocabulary_that_is_none_is_an_error(tmp_path, vocabulary, said):
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(CheckpointError, match=said):
        read_tokenizer(tmp_path)


def test_a_tokenizer_of_another_class_is_refused_by_name(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "WhisperTokenizer"}')
    with pytest.raises(CheckpointError, match=r"is a WhisperTokenizer, which is not supported.*Wav2Vec2CTCTokenizer"):
        read_tokenizer(tmp_path)
