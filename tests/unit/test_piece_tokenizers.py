"""A CTC head with a tokenizer of pieces (ParakeetTokenizer): its targets, texts and words against stock's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.ctc_head import derive_ctc_head, describe_ctc_head
from w2v_attn.checkpoints.piece_tokenizers import make_piece_tokenizer
from w2v_attn.checkpoints.tokenizers import read_tokenizer
from w2v_attn.transcription.ctc_recognizer import Letter, split_words

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the rows of Omnilingual ASR; <s> is CTC's blank
SCRIPTS = (
    "abcdeçéß",
    "ABCDEÉ",
    "абвгдё",
    "αβγς",
    "ابتثی",
    "কখগ়া",
    "กขคงา",
    "的一是不了",
    "かきくガ",
    "'-0123",
    "한국\u1100\u1161",
)
LONG = ("ch", "sh", "க்", "कि", " the", " a", " न")


def omniasr_tokenizer(pieces, *, escaped=False, cleans_up=False):
    """Return a tokenizer as transformers' converter makes it from a SentencePiece model; escaped: ▁ for spaces."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import ParakeetTokenizer

    pieces = [*SPECIAL, *(piece.replace(" ", "▁") if escaped else piece for piece in pieces)]
    # Scores as a trained model has them: all different.
    scored = [(piece, -1.0 - 0.01 * number) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
    tokenizer.add_tokens([AddedToken(symbol, normalized=False, special=True) for symbol in SPECIAL[:3]])
    steps = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if escaped:
        steps += [normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")]
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
        tokenizer.decoder = decoders.Fuse()
    tokenizer.normalizer = normalizers.Sequence(steps)
    begin, pad, end, unknown = SPECIAL
    names = {"bos_token": begin, "pad_token": pad, "eos_token": end, "unk_token": unknown}
    return ParakeetTokenizer(tokenizer_object=tokenizer, **names, clean_up_tokenization_spaces=cleans_up)


def make_head(pieces, *, rows=None, blank=0, **options):
    tokenizer = omniasr_tokenizer(pieces, **options)
    return derive_ctc_head(tokenizer, rows=rows or len(tokenizer), config_blank=blank, source="a checkpoint")


def processor_of(tokenizer):
    transformers = pytest.importorskip("transformers", minversion="5.24")
    return transformers.OmniASRCTCProcessor(transformers.OmniASRFeatureExtractor(), tokenizer)


@st.composite
def vocabularies(draw):
    """Draw (pieces, alphabet of texts, options): any script, long pieces, with and without a space."""
    letters = draw(st.lists(st.sampled_from("".join(SCRIPTS)), min_size=1, max_size=25, unique=True))
    long = draw(st.lists(st.sampled_from(LONG), max_size=4, unique=True))
    spaces = [" "] if draw(st.integers(0, 4)) else []
    options = {"escaped": draw(st.booleans()), "cleans_up": draw(st.booleans())}
    pieces = draw(st.permutations([*spaces, *letters, *long]))
    return pieces, st.lists(st.sampled_from([*letters, *long, " ", " ", "z"]), max_size=12).map("".join), options


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_targets_are_the_labels_of_stocks_processor(data):
    pieces, texts, options = data.draw(vocabularies())
    head = make_head(pieces, **options)
    processor = processor_of(omniasr_tokenizer(pieces, **options))
    for _ in range(3):
        text = " ".join(data.draw(texts).split())
        silence = [0.0] * 400
        labels = processor([silence], text=[text], sampling_rate=16_000, padding=True, return_tensors="pt")["labels"]
        theirs = labels[0].tolist()
        if head.unknown_symbols(text):
            assert head.tokenizer.unk_token_id in theirs
        else:
            assert head.encode(text) == theirs
            assert [head.symbols[symbol] for symbol in head.split(text)] == theirs


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_text_is_that_of_stocks_processor_and_words_are_its_parts(data):
    pieces, _, options = data.draw(vocabularies())
    rows = len(SPECIAL) + len(pieces) + data.draw(st.integers(0, 2))
    head = make_head(pieces, rows=rows, **options)
    path = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=40))
    theirs = processor_of(omniasr_tokenizer(pieces, **options)).decode(path, skip_special_tokens=True)
    text, letters = head.decode(path)
    assert text == theirs
    words = list(split_words(head, text, [Letter(*letter) for letter in letters]))
    joined = "".join(joiner + "".join(letter.text for letter in word) for joiner, word in words)
    assert joined == text.rstrip(" ")
    times = [(word[0].start, word[-1].end) for _, word in words]
    assert times == sorted(times)
    assert all(first < end <= len(path) for first, end in times)


def words_of(head, *symbols):
    """Return (word, start, end) of a path with one frame per symbol and a blank after each."""
    path = [row for symbol in symbols for row in (head.symbols[symbol], head.blank)]
    text, letters = head.decode(path)
    words = split_words(head, text, [Letter(*letter) for letter in letters])
    return [("".join(letter.text for letter in word), word[0].start, word[-1].end) for _, word in words]


def test_words_are_what_spaces_separate():
    head = make_head([" ", *"abc"])
    assert words_of(head, "a", "b", " ", "c") == [("ab", 0, 3), ("c", 6, 7)]
    assert (head.delimiter, head.blank, head.blank_symbol, head.unit) == (" ", 0, "<s>", "characters")
    assert head.ordinary == ["a", "b", "c"]
    assert head.warnings == ()


def test_a_space_at_the_start_of_a_piece_begins_a_word():
    head = make_head([*"abc", " the", " a"])
    assert words_of(head, "a", " the", "b", " a") == [("a", 0, 1), ("theb", 2, 5), ("a", 6, 7)]
    assert (head.delimiter, head.has_spaces, head.unit) == (None, True, "characters")
    assert "pieces with spaces" in dict(describe_ctc_head(head))["CTC head"]


def test_without_spaces_each_character_is_a_word():
    head = make_head(["的", "一", "是"])
    assert words_of(head, "的", "一") == [("的", 0, 1), ("一", 2, 3)]
    assert not head.has_spaces
    assert "no row for the space" in head.warnings[0]


def test_repeated_letters_need_a_blank_between_them():
    head = make_head([" ", *"abc"])
    a = head.symbols["a"]
    assert head.decode([a, a, 0, a])[0] == "aa"
    assert head.encode("aa") == [a, a]


def test_the_blank_is_the_configs_and_not_the_padding_symbol():
    assert make_head([" ", "a"], blank=0).blank_symbol == "<s>"
    assert make_head([" ", "a"], blank=1).blank_symbol == "<pad>"
    assert make_head([" ", "a"], blank=None).blank_symbol == "<pad>"


def test_a_blank_that_is_a_letter_is_named():
    head = make_head([" ", "a"], blank=5)
    assert "no special symbol of the tokenizer: transformers writes it into texts" in head.warnings[0]
    assert head.decode([5, 0, 5])[0] == ""


def test_a_blank_without_a_row_is_an_error_that_says_where_to_set_it():
    with pytest.raises(CheckpointError, match=r"blank is unknown: blank_token_id of config.json is 9"):
        make_head([" ", "a"], blank=9)


def test_special_symbols_in_a_text_are_no_letters():
    head = make_head([" ", *"ab"])
    assert head.unknown_symbols("a<pad>b zz") == {"<pad>": 1, "z": 2}
    assert head.unknown_symbols("a b") == {}


def test_rows_without_symbols_are_left_out_of_texts():
    head = make_head([" ", "a"], rows=8)
    assert head.decode([5, 7, 0, 5])[0] == "aa"
    assert "2 of 8 outputs of the head have no symbol, and are left out of texts: rows 6 7" in head.warnings[0]


@pytest.mark.parametrize("symbols", [[" ", *"abcé", "的"], [" ", "yes", "no", "yesno", "y"]])
def test_a_new_tokenizer_is_read_back_from_its_folder(tmp_path, symbols):
    names = {"blank": "<pad>", "begin": "<s>", "end": "</s>", "unknown": "<unk>"}
    made = make_piece_tokenizer([*names.values(), *symbols], **names)
    made.save_pretrained(tmp_path)
    head = derive_ctc_head(read_tokenizer(tmp_path), rows=len(made), config_blank=0, source="a checkpoint")
    assert head.warnings == ()
    assert head.symbols == {symbol: row for row, symbol in enumerate([*names.values(), *symbols])}
    text = " ".join(symbols[1:])
    path = [row for number in head.encode(text) for row in (number, 0)]
    assert head.split(text) == [symbol for word in symbols[1:] for symbol in (" ", word)][1:]
    # The blank is the padding symbol: stock leaves it out without being told to.
    assert processor_of(made).decode(path) == head.decode(path)[0] == text


def test_a_damaged_tokenizer_file_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ParakeetTokenizer"}')
    with pytest.raises(CheckpointError, match=r"the vocabulary of .* cannot be read"):
        read_tokenizer(tmp_path)
