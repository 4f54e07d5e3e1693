"""Long recordings are transcribed as extract processes them; short ones exactly as the model itself does."""

import json
import pickle

import jiwer
import pytest
import torch
from conftest import SPEECH, TINY, save, tiny_bert, tiny_model

from w2v_attn import read_audio
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.transcription import recognizer as recognizer_module
from w2v_attn.transcription.load_recognizer import load_recognizer

WINDOWS = [LongForm(kind="sliding_window"), LongForm(kind="chunked")]


@pytest.fixture(scope="module")
def full():
    return load_recognizer(TINY)


@pytest.fixture(scope="module")
def talk():
    """Eight seconds of speech: longer than a window of two, shorter than one of thirty."""
    return torch.cat([read_audio(path) for path in sorted(SPEECH.glob("*/*.flac"))])[: 8 * 16_000]


def stock_log_probabilities(folder, wave):
    from transformers import Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
    with torch.no_grad():
        return model(wave[None]).logits[0].log_softmax(-1)


@pytest.mark.parametrize("long_form", WINDOWS, ids=lambda form: form.kind)
def test_a_window_longer_than_the_recording_gives_what_stock_gives(long_form, talk):
    ours = load_recognizer(TINY, long_form=long_form).log_probabilities(talk)
    torch.testing.assert_close(ours, stock_log_probabilities(TINY, talk), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["sliding_window", "chunked"])
def test_a_shorter_window_gives_nearly_the_same_text(kind, full, talk):
    found = load_recognizer(TINY, long_form=LongForm(kind=kind, seconds=2.0, overlap=0.5)).recognize(talk)
    assert jiwer.cer(full.recognize(talk).text, found.text) < 0.2
    assert found.words[-1].end <= 8.0


WEIGHTED = {"use_weighted_layer_sum": True}
ADAPTER = {"add_adapter": True, "output_hidden_size": 24, "num_adapter_layers": 2}
HEADS = [
    *((family, "ForCTC", {}) for family in ("wav2vec2-group", "wavlm-layer", "data2vec-audio", "sew")),
    ("wav2vec2-layer", "ForCTC", ADAPTER),
    ("wav2vec2-layer", "ForSequenceClassification", {}),
    *((family, "ForSequenceClassification", WEIGHTED) for family in ("wav2vec2-layer", "wavlm-group", "sew")),
]


@pytest.mark.parametrize(("family", "head", "changes"), HEADS)
def test_every_head_has_its_own_forward_on_the_frames(family, head, changes, tmp_path):
    folder = save(tiny_model(family, head, **changes), tmp_path / "m")
    (folder / "vocab.json").write_text(json.dumps({s: n for n, s in enumerate(["<pad>", "<unk>", "|", *"abcdefgh"])}))
    wave = torch.randn(30_000)
    expected = load_recognizer(folder).log_probabilities(wave)
    for long_form in WINDOWS:
        found = load_recognizer(folder, long_form=long_form).log_probabilities(wave)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_recording_beyond_the_limit_of_the_model_goes_through_the_packed_encoder(full, talk, monkeypatch):
    expected = full.log_probabilities(talk)
    monkeypatch.setattr(recognizer_module, "MAX_MODEL_SECONDS", 1.0)
    found = load_recognizer(TINY).log_probabilities(talk)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    assert not torch.equal(found, expected)  # so another way was taken


def test_weights_that_change_change_the_output_of_a_long_form(talk):
    recognizer = load_recognizer(TINY, long_form=WINDOWS[0])
    before = recognizer.log_probabilities(talk)
    with torch.no_grad():
        recognizer.model.lm_head.weight.mul_(2)
        recognizer.model.wav2vec2.encoder.layers[0].feed_forward.output_dense.weight.mul_(1.5)
    after = recognizer.log_probabilities(talk)
    recognizer.long_form = LongForm()
    torch.testing.assert_close(after, recognizer.log_probabilities(talk), rtol=0, atol=5e-4)
    assert not torch.allclose(before, after, atol=1e-2)


def test_a_recognizer_with_a_long_form_is_pickled(talk):
    recognizer = load_recognizer(TINY, long_form=WINDOWS[0])
    expected = recognizer.log_probabilities(talk)
    assert torch.equal(pickle.loads(pickle.dumps(recognizer)).log_probabilities(talk), expected)


@pytest.mark.parametrize("make", [lambda: tiny_model("conformer-rotary", "ForCTC"), lambda: tiny_bert(head="ForCTC")])
def test_a_family_without_windows_is_refused_as_extract_refuses_it(make, tmp_path):
    model = make()
    if "Bert" in type(model).__name__:
        from transformers import SeamlessM4TFeatureExtractor

        model.save_pretrained(tmp_path / "m")
        SeamlessM4TFeatureExtractor().save_pretrained(tmp_path / "m")
    else:
        save(model, tmp_path / "m")
    (tmp_path / "m" / "vocab.json").write_text(
        json.dumps({s: n for n, s in enumerate(["<pad>", "<unk>", *"abcdefghi"])})
    )
    with pytest.raises(ValueError, match="Use long_form=full"):
        load_recognizer(tmp_path / "m", long_form=WINDOWS[0])


@pytest.mark.parametrize("command", ["transcribe", "evaluate"])
def test_the_commands_take_the_groups_of_extract(call, command):
    code, out, err = call(
        command, f"audio={SPEECH / 'clips.csv'}", "long_form=chunked", "long_form.seconds=1", "long_form.overlap=0.2"
    )
    assert code == 0, err
    assert "chunked of 1 s: not exact beyond that" in out


def test_a_long_recording_says_how_long_it_will_take(full, talk, monkeypatch, caplog):
    monkeypatch.setattr(recognizer_module, "LONG_RECORDING", 1.0)
    monkeypatch.setattr(recognizer_module, "LONG_WAIT", 0.0)
    full.announce("talk.flac", talk)
    load_recognizer(TINY, long_form=WINDOWS[0]).announce("talk.flac", talk)
    first, second = caplog.messages
    assert "talk.flac: 0 minutes of audio will take about 0 minutes; long_form=sliding_window takes less" in first
    assert "long_form" not in second
