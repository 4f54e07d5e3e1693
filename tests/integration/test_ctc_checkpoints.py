"""CTC checkpoints as people have them, in load, transcribe and finetune; expected values are stock's."""

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from conftest import ROOT, SPEECH, TINY, save, tiny_model
from safetensors.torch import load_file, save_file

from w2v_attn import read_audio
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.corpus.rows import Row
from w2v_attn.training import finetuning
from w2v_attn.training.callbacks import SilentListener
from w2v_attn.training.options import CtcOptions, DataOptions, OptimizerOptions, Recipe, TrainingOptions
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.transcription.load_recognizer import load_recognizer

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
PHONES = "n s t ə l a i k d m ɛ iː r w aɪ ɑː eɪ oʊ tʃ".split()
CLIP = SPEECH / "en-us+m5" / "00-three.flac"


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def ctc_folder(folder, symbols, tokenizer=None, *, pad=0, rows=None, seed=0):
    """Save a random CTC model with this vocabulary, as other tools do."""
    model = tiny_model("wav2vec2-group", "ForCTC", seed=seed, vocab_size=rows or len(symbols), pad_token_id=pad)
    with torch.no_grad():
        model.lm_head.weight *= 30
    save(model, folder)
    write_json(folder / "vocab.json", {symbol: row for row, symbol in enumerate(symbols)})
    if tokenizer is not None:
        write_json(folder / "tokenizer_config.json", tokenizer)
    return folder


@pytest.fixture(scope="module")
def without_sentence_symbols(tmp_path_factory):
    """The bundled checkpoint without the rows of <s> and </s>."""
    folder = tmp_path_factory.mktemp("heads") / "checkpoint"
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    vocabulary = read_json(folder / "vocab.json")
    kept = [s for s in sorted(vocabulary, key=vocabulary.get) if s not in ("<s>", "</s>")]
    rows = torch.tensor([vocabulary[symbol] for symbol in kept])
    for name in ("lm_head.weight", "lm_head.bias"):
        weights[name] = weights[name][rows].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "vocab.json", {symbol: row for row, symbol in enumerate(kept)})
    config = read_json(folder / "config.json") | {"vocab_size": len(kept), "pad_token_id": kept.index("<pad>")}
    write_json(folder / "config.json", config | {"bos_token_id": None, "eos_token_id": None})
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "unk_token": "<unk>"},
    )
    return folder


class Report(SilentListener):
    def on_data_report(self, rows):
        self.rows = dict(rows)


def train(checkpoint, manifest, output, **task):
    """Train one step at a learning rate that changes nothing; return the report and the metrics."""
    listener = Report()
    recipe = Recipe(
        task=CtcOptions(**task),
        data=DataOptions(train=str(manifest), valid_share=0.3),
        checkpoint=str(checkpoint),
        optimizer=OptimizerOptions(lr=1e-9),
        training=TrainingOptions(max_steps=1, batch_seconds=9, eval_steps=1),
    )
    done = finetuning.finetune(recipe, output, listener)
    return listener.rows, done.metrics["valid"]


def manifest(folder, texts):
    """Write a list of the same clip with different texts."""
    folder.mkdir(exist_ok=True)
    samples, rate = soundfile.read(CLIP)
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "text"))
        for number, text in enumerate(texts):
            soundfile.write(folder / f"{number}.wav", [*samples] * 2, rate)
            writer.writerow((f"{number}.wav", text))
    return folder / "list.csv"


def stock_text(folder, wave):
    """Return the text of stock's model and tokenizer."""
    from transformers import AutoModelForCTC, AutoProcessor, AutoTokenizer

    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(processor(wave, sampling_rate=16_000, return_tensors="pt").input_values).logits[0]
    return AutoTokenizer.from_pretrained(folder).decode(logits.argmax(-1))


def test_a_head_without_sentence_symbols_keeps_its_errors_through_training(without_sentence_symbols, tmp_path):
    report, metrics = train(without_sentence_symbols, SPEECH / "clips.csv", tmp_path / "out")
    assert report["head"] == "the checkpoint's, kept"
    before, after = load_recognizer(without_sentence_symbols), load_recognizer(tmp_path / "out")
    bundled = load_recognizer(TINY)
    assert after.head.rows == before.head.rows == bundled.head.rows - 2
    for clip in sorted(SPEECH.rglob("*.flac"))[:6]:
        wave = read_audio(clip)
        assert after.recognize(wave).text == before.recognize(wave).text == bundled.recognize(wave).text
    assert metrics["wer"] < 0.3


def test_a_vocabulary_with_the_same_rows_keeps_the_head_and_another_is_announced():
    rows = [Row("a", Path("a"), text="three")]
    checkpoint = load_checkpoint(TINY, with_head=True)
    kept = Ctc.from_data(CtcOptions(vocabulary=str(TINY / "vocab.json")), rows, checkpoint)
    assert kept.keeps_head
    assert "same symbols in the same rows" in kept.head_reason
    new = Ctc.from_data(CtcOptions(vocabulary="data"), rows, checkpoint)
    assert not new.keeps_head
    assert "what its head has learned is not used" in new.head_reason
    encoder = load_checkpoint(TINY)
    assert "the checkpoint has none" in Ctc.from_data(CtcOptions(), rows, encoder).head_reason


def test_phones_are_decoded_as_stock_does_and_trained_on(tmp_path):
    tokenizer = {
        "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "word_delimiter_token": None, "phone_delimiter_token": " ",
        "phonemizer_backend": "espeak", "phonemizer_lang": "en-us", "do_phonemize": True, "pad_token": "<pad>",
    }  # fmt: skip
    folder = ctc_folder(tmp_path / "phones", ["<s>", "<pad>", "</s>", "<unk>", *PHONES], tokenizer, pad=1, seed=3)
    wave = read_audio(CLIP)
    found = load_recognizer(folder).recognize(wave)
    assert found.text == stock_text(folder, wave) != ""
    assert [word.word for word in found.words] == found.text.split(" ")
    _, metrics = train(folder, manifest(tmp_path / "data", ["t r iː", "n aɪ n", "s ɛ k"] * 2), tmp_path / "out")
    assert set(metrics) == {"per", "cer", "exact", "empty", "loss"}
    saved = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert (saved["tokenizer_class"], saved["do_phonemize"]) == ("Wav2Vec2PhonemeCTCTokenizer", True)
    assert load_recognizer(tmp_path / "out").recognize(wave).text == found.text
    with pytest.raises(
        ValueError, match=r"phones that are not in the vocabulary: '(three|nine)'.*a space between each two"
    ):
        train(folder, manifest(tmp_path / "words", ["three", "nine"]), tmp_path / "other")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": True},
        {"replace_word_delimiter_char": "_"},
        {"word_delimiter_token": None},
        {"clean_up_tokenization_spaces": True},
    ],
)
def test_text_and_score_are_stocks_whatever_the_tokenizers_options(options, tmp_path):
    symbols = ["<pad>", "<unk>", "|", *"ABCDEFGH'.", "SH", "TH"]
    tokenizer = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", **options}
    folder = ctc_folder(tmp_path / "checkpoint", symbols, tokenizer, rows=len(symbols) + 2)
    wave = read_audio(CLIP)
    found = load_recognizer(folder).recognize(wave)
    assert found.text == stock_text(folder, wave) != ""
    assert "".join(word.joiner + word.word for word in found.words).strip("_") == found.text.strip("_")


def test_a_vocabulary_alone_is_enough(tmp_path, caplog):
    symbols = [*LETTERS, "|", "[UNK]", "[PAD]"]
    folder = ctc_folder(tmp_path / "checkpoint", symbols, pad=len(symbols) - 1)
    recognizer = load_recognizer(folder)
    assert "[PAD]" not in recognizer.recognize(read_audio(CLIP)).text
    assert "the blank is row 28 ([PAD]), as config.json says" in caplog.text
    report, _ = train(folder, manifest(tmp_path / "data", ["three", "a b", "no"] * 2), tmp_path / "out")
    assert report["head"] == "the checkpoint's, kept"
    # Stock reads the blank from the folder that was written.
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == 28


def test_load_says_what_a_head_can_output_and_does_not_fail_for_one_that_cannot_be_used(call, tmp_path):
    folder = ctc_folder(tmp_path / "checkpoint", ["<pad>", "|", *LETTERS, "é"], rows=28)
    code, out = call("load", "model=local", f"model.checkpoint={folder}")[:2]
    assert code == 0
    assert "28 outputs; blank <pad> (row 0); word delimiter '|'" in out
    assert "have no row in the head of 28 outputs" in " ".join(out.split())
    folder = ctc_folder(tmp_path / "unusable", [*LETTERS, "|"], pad=99)
    code, out = call("load", "model=local", f"model.checkpoint={folder}")[:2]
    assert code == 0
    assert "cannot be used" in out


def test_a_copy_of_a_fine_tuned_model_keeps_its_normalization_of_texts(call, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    normalization = {"form": "NFC", "case": "lower", "remove_characters": "[x]", "character_map": {"ё": "е"}}
    write_json(tmp_path / "model" / "text_normalization.json", normalization)
    assert call("load", f"model={tmp_path / 'model'}", f"output={tmp_path / 'copy'}")[0] == 0
    assert read_json(tmp_path / "copy" / "text_normalization.json") == normalization


def test_training_that_continues_with_a_fine_tuned_head_normalizes_texts_as_before(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    normalization = {"form": "NFC", "case": "lower", "remove_characters": "[x]", "character_map": {"ё": "e"}}
    write_json(folder / "text_normalization.json", normalization | {"delimiter": "|"})
    checkpoint = load_checkpoint(folder, with_head=True)
    rows = [Row("a", Path("a"), text="Three ёx.")]

    def reference(**options):
        return Ctc.from_data(CtcOptions(out_of_vocabulary="drop", **options), rows, checkpoint).reference(rows[0])

    assert reference() == "three e ."
    assert reference(vocabulary=str(TINY / "vocab.json")) == "three e ."
    assert reference(remove_characters="[.]", character_map={"x": "s"}) == "three es"
    assert reference(case="upper") == "THREE EX."
    assert reference(vocabulary="data") == "three ёx"  # a new head has its own


def test_python_and_the_command_line_have_the_same_defaults_for_texts():
    written = yaml.safe_load((ROOT / "conf" / "task" / "ctc.yaml").read_text())
    assert {key: value for key, value in written.items() if key != "kind"} == asdict(CtcOptions())


def test_dropped_texts_are_reported_with_what_the_vocabulary_lacks(tmp_path):
    texts = ["three", "room 12", "no", "a b"] * 2
    report, _ = train(TINY, manifest(tmp_path / "data", texts), tmp_path / "out", out_of_vocabulary="drop")
    assert "digits: write numbers as words" in report["outside the vocabulary"]
    assert "'1' × " in report["outside the vocabulary"]
