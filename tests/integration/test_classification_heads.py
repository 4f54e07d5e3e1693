"""Classification, frame classification and x-vector heads give what stock transformers gives, by problem type."""

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import FAMILIES, SPEECH, TINY, large_table, save, tiny_bert, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from w2v_attn import read_audio
from w2v_attn.checkpoints.classification_heads import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL, output_names
from w2v_attn.checkpoints.description import describe_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.transcription.frame_classifier import runs
from w2v_attn.transcription.load_recognizer import load_recognizer, notes_on
from w2v_attn.transcription.outputs import Embedding, FrameValues, Label, Labels, Spans, Values

NAMES = {0: "arousal", 1: "dominance", 2: "valence"}
WITH_FRAME_HEADS = ["wav2vec2-group", "wav2vec2-layer", "data2vec-audio", "unispeech-sat-group", "wavlm-layer",
                    "conformer-relative", "wav2vec2-bert"]  # fmt: skip
CLIP = SPEECH / "en-us+m5" / "00-three.flac"
# Short TDNN layers: the real ones are 512 and 1500 channels wide.
X_VECTOR = {"tdnn_dim": [13, 11, 17], "tdnn_kernel": [3, 2, 1], "tdnn_dilation": [1, 3, 1], "xvector_output_dim": 7}


def checkpoint(folder, family, head="ForSequenceClassification", *, loud=20.0, **changes):
    """A saved stock model whose outputs differ much between each other."""
    make = tiny_bert if family == "wav2vec2-bert" else lambda **options: tiny_model(family, **options)
    model = make(head=head, **{"id2label": NAMES, "classifier_proj_size": 9, **changes})
    with torch.no_grad():
        model.classifier.weight.mul_(loud)
    if family == "wav2vec2-bert":
        model.save_pretrained(folder)
        transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)
        return folder
    return save(model, folder)


def stock(folder, wave, **options):
    """What stock's pipeline gives: name -> number."""
    found = transformers.pipeline("audio-classification", str(folder))(wave.numpy(), top_k=None, **options)
    return {one["label"]: one["score"] for one in found}


def stock_outputs(folder, wave, head):
    """The outputs of a stock model for one recording."""
    model = head.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    values = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return model(**values)


@pytest.mark.parametrize(("family", "problem"), large_table([*FAMILIES, "wav2vec2-bert"], [None, *PROBLEM_TYPES]))
def test_a_classifier_gives_the_numbers_of_stocks_pipeline(family, problem, tmp_path):
    folder = checkpoint(tmp_path / "m", family, problem_type=problem)
    wave = read_audio(CLIP)
    found, theirs = load_recognizer(folder).recognize(wave), stock(folder, wave)
    close = {name: pytest.approx(number, abs=2e-4) for name, number in theirs.items()}
    if problem == REGRESSION:
        assert isinstance(found, Values)
        assert list(found.values) == list(NAMES.values())
        assert found.values == close
    elif problem == MULTI_LABEL:
        assert isinstance(found, Labels)
        assert found.scores == close
        assert set(found.labels) == {name for name, score in theirs.items() if score > 0.5}
    else:
        assert isinstance(found, Label)
        assert found.scores == close
        assert found.label == max(theirs, key=theirs.get)


def test_a_single_output_without_a_problem_type_is_a_value(tmp_path):
    """Softmax of one number is 1 for every recording; transformers' loss takes it as a regression, too."""
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", id2label={0: "quality"})
    wave = read_audio(CLIP)
    recognizer = load_recognizer(folder)
    raw = stock(folder, wave, function_to_apply="none")
    assert recognizer.recognize(wave).values == {"quality": pytest.approx(raw["quality"], abs=1e-5)}
    assert stock(folder, wave)["quality"] == 1
    assert "single output is taken as a value" in "".join(notes_on(recognizer))


def test_the_problem_type_can_be_given(tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group")
    wave = read_audio(CLIP)
    found = load_recognizer(folder, problem_type="multi").recognize(wave)
    assert found.scores == {
        name: pytest.approx(p, abs=1e-4) for name, p in stock(folder, wave, function_to_apply="sigmoid").items()
    }
    with pytest.raises(ValueError, match="problem_type must be auto, single_label_classification"):
        load_recognizer(folder, problem_type="several")
    with pytest.raises(ValueError, match="is for classification heads"):
        load_recognizer(TINY, problem_type="multi")


def test_one_output_cannot_be_one_of_several_labels(tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", id2label={0: "quality"})
    with pytest.raises(ValueError, match="needs two outputs or more"):
        load_recognizer(folder, problem_type="single")


def test_a_problem_type_that_transformers_does_not_have_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", problem_type="multi_class")
    with pytest.raises(ValueError, match="problem_type=multi_class, expected one of"):
        load_recognizer(folder)
    assert load_recognizer(folder, problem_type="single").recognize(read_audio(CLIP)).label in NAMES.values()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_labels_are_those_above_the_threshold(threshold, tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", problem_type=MULTI_LABEL)
    found = load_recognizer(folder, threshold=threshold).recognize(read_audio(CLIP))
    assert found.labels == tuple(name for name, score in found.scores.items() if score > threshold)
    assert list(found.scores.values()) == sorted(found.scores.values(), reverse=True)


def test_a_threshold_is_a_probability(tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", problem_type=MULTI_LABEL)
    with pytest.raises(ValueError, match="threshold must be a probability"):
        load_recognizer(folder, threshold=50)


def test_outputs_without_names_are_usable_and_it_is_said(tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", id2label={0: "LABEL_0", 1: "LABEL_1"})
    recognizer = load_recognizer(folder)
    assert recognizer.recognize(read_audio(CLIP)).label in ("LABEL_0", "LABEL_1")
    assert "does not say what its outputs mean" in "".join(notes_on(recognizer))
    assert not [*notes_on(load_recognizer(checkpoint(tmp_path / "named", "wav2vec2-group")))]


@pytest.mark.parametrize(
    ("id2label", "names"),
    [
        ({1: "no", 2: "yes"}, ["LABEL_0", "no"]),  # numbered from 1: stock's pipeline raises KeyError
        ({0: "a", 1: "a", 2: "b"}, ["a (0)", "a (1)", "b"]),
        ({1: "one", 0: "zero"}, ["zero", "one"]),
        ({0: 0, 1: 1}, ["0", "1"]),
    ],
)
def test_every_output_has_a_name_of_its_own(id2label, names):
    assert output_names(transformers.Wav2Vec2Config(id2label=id2label)) == names


# ---------------------------------------------------------------------------------------- frames and embeddings


@pytest.mark.parametrize("family", WITH_FRAME_HEADS)
def test_frames_are_those_of_stock(family, tmp_path):
    folder = checkpoint(tmp_path / "m", family, "ForAudioFrameClassification")
    wave = read_audio(SPEECH / "en-us+m5" / "21-down.flac")
    head = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    recognizer = load_recognizer(folder)
    # Stock pads the filter banks of Wav2Vec2-BERT to an even number of frames.
    theirs = stock_outputs(folder, wave, head).logits[0, : recognizer.count_frames(len(wave))]
    torch.testing.assert_close(recognizer.outputs(wave), theirs, rtol=0, atol=2e-3)
    frames = recognizer.count_frames(len(wave))
    assert theirs.shape == (frames, 3)
    found = recognizer.recognize(wave)
    assert isinstance(found, Spans)
    covered = np.zeros((frames, 3), bool)
    for span in found.spans:
        first, end = (round(time * recognizer.frame_rate()) for time in (span.start, span.end))
        covered[first:end, list(NAMES.values()).index(span.label)] = True
        assert span.end <= len(wave) / 16_000
    sure = (theirs.sigmoid() - 0.5).abs() > 1e-3
    assert (torch.from_numpy(covered) == (theirs.sigmoid() > 0.5))[sure].all()


def test_frames_of_exclusive_labels_have_one_label_each(tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", "ForAudioFrameClassification", problem_type=SINGLE_LABEL)
    recognizer, wave = load_recognizer(folder), read_audio(CLIP)
    spans = recognizer.recognize(wave).spans
    assert spans[0].start == 0
    assert all(a.end == b.start and a.label != b.label for a, b in pairwise(spans))
    logits = recognizer.outputs(wave)
    assert spans[-1].end == pytest.approx(len(logits) / recognizer.frame_rate(), abs=1e-3)
    assert spans[0].label == NAMES[int(logits[0].argmax())]


def test_frames_of_a_regression_have_values(tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", "ForAudioFrameClassification", problem_type=REGRESSION)
    recognizer, wave = load_recognizer(folder), read_audio(CLIP)
    found = recognizer.recognize(wave)
    assert isinstance(found, FrameValues)
    assert found.values["valence"] == recognizer.outputs(wave)[:, 2].tolist()
    assert found.as_record()["frame_rate"] == 50
    assert len(found.as_text().splitlines()) == 1 + len(recognizer.outputs(wave))


@given(st.lists(st.booleans(), max_size=30))
def test_runs_are_the_longest_that_hold(values):
    found = list(runs(torch.tensor(values, dtype=torch.bool)))
    covered = [False] * len(values)
    for first, end in found:
        assert first < end
        covered[first:end] = [True] * (end - first)
    assert covered == values
    assert all(a[1] < b[0] for a, b in pairwise(found))


@pytest.mark.parametrize("family", WITH_FRAME_HEADS)
def test_an_embedding_is_that_of_stock(family, tmp_path):
    folder = checkpoint(tmp_path / "m", family, "ForXVector", **X_VECTOR)
    wave = read_audio(CLIP)
    head = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    theirs = stock_outputs(folder, wave, head).embeddings[0]
    found = load_recognizer(folder).recognize(wave)
    assert isinstance(found, Embedding)
    torch.testing.assert_close(torch.tensor(found.embedding), theirs, rtol=0, atol=1e-3)


def test_a_recording_too_short_for_an_embedding_is_named(tmp_path):
    """Six frames are the receptive field of these layers, and a standard deviation needs two values."""
    recognizer = load_recognizer(checkpoint(tmp_path / "m", "wav2vec2-group", "ForXVector", **X_VECTOR))
    samples = {frames: 400 + 320 * (frames - 1) for frames in (6, 7)}
    with pytest.raises(ValueError, match="too short: 6 frames, and the convolutions of the x-vector head need 7"):
        recognizer.recognize(torch.randn(samples[6]))
    found = recognizer.recognize(torch.randn(samples[7]))
    assert np.isfinite(found.embedding).all()


# ---------------------------------------------------------------------------------------------- another dense head


def dense_checkpoint(folder, architectures, layer="out_proj", **changes):
    """An encoder with the head of "Wav2Vec2ForSpeechClassification", as m3hrdadfi/soxan and audeering define it."""
    config = tiny_model("wav2vec2-layer").config
    config.update({"id2label": NAMES, "problem_type": REGRESSION, **changes})
    torch.manual_seed(0)
    encoder = tiny_model("wav2vec2-layer")
    dense, out = torch.nn.Linear(24, 24), torch.nn.Linear(24, 3)
    weights = {f"wav2vec2.{name}": value for name, value in encoder.state_dict().items()}
    for name, module in (("dense", dense), (layer, out)):
        weights |= {f"classifier.{name}.{key}": value for key, value in module.state_dict().items()}
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config.architectures = architectures
    config.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)

    def values(wave, pool):
        wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
        with torch.no_grad():
            return out(torch.tanh(dense(pool(encoder(wave[None]).last_hidden_state))))[0].tolist()

    return folder, values


@pytest.mark.parametrize("architecture", ["Wav2Vec2ForSpeechClassification", "Wav2Vec2ForSequenceClassification"])
@pytest.mark.parametrize("pooling", ["mean", "max", "sum"])
def test_the_head_of_many_emotion_checkpoints_is_recognised_by_its_weights(architecture, pooling, tmp_path):
    folder, values = dense_checkpoint(tmp_path / "m", [architecture], pooling_mode=pooling)
    wave = read_audio(CLIP)
    pools = {"mean": lambda x: x.mean(1), "max": lambda x: x.max(1).values, "sum": lambda x: x.sum(1)}
    expected = values(wave, pools[pooling])
    found = load_recognizer(folder).recognize(wave)
    assert list(found.values) == list(NAMES.values())
    assert list(found.values.values()) == [pytest.approx(value, abs=1e-4) for value in expected]


def test_a_head_that_is_not_known_is_refused_with_its_names(tmp_path):
    """Which function is between two layers of a head cannot be seen from its weights."""
    folder, _ = dense_checkpoint(tmp_path / "m", ["Wav2Vec2ForSequenceClassification"], layer="output")
    with pytest.raises(ValueError, match=r"(?s)missing: classifier.bias.*unexpected: classifier.output.weight"):
        load_recognizer(folder)
    folder, _ = dense_checkpoint(tmp_path / "n", ["Wav2Vec2ForSpeechClassification"], layer="output")
    with pytest.raises(ValueError, match="names Wav2Vec2ForSpeechClassification, which transformers does not have"):
        load_recognizer(folder)


# --------------------------------------------------------------------------------------------------- the command


def test_transcribe_writes_what_each_head_gives(call, tmp_path):
    heads = {
        "values": checkpoint(tmp_path / "v", "wav2vec2-group", problem_type=REGRESSION),
        "labels": checkpoint(tmp_path / "l", "wav2vec2-group", problem_type=MULTI_LABEL),
        "label": checkpoint(tmp_path / "s", "wav2vec2-group"),
        "spans": checkpoint(tmp_path / "f", "wav2vec2-group", "ForAudioFrameClassification"),
        "embedding": checkpoint(tmp_path / "x", "wav2vec2-group", "ForXVector", **X_VECTOR),
    }
    for key, folder in heads.items():
        code, out, err = call(
            "transcribe", f"model.checkpoint={folder}", f"audio={CLIP}", f"output={key}", "formats=[txt]"
        )
        assert code == 0, err
        record = json.loads((tmp_path / key / "transcripts.jsonl").read_text())
        assert record["id"] == CLIP.name
        recognized = load_recognizer(folder).recognize(read_audio(CLIP))
        assert record[key] == recognized.as_record()[key]
        assert (tmp_path / key / f"{CLIP.name}.txt").read_text() == recognized.as_text() + "\n"
        assert "1 of 1" in out
    assert "an embedding of 7 values" in out


def test_the_values_of_a_regression_are_written_as_stock_computes_them(call, tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-layer", problem_type=REGRESSION, loud=1e-6)
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(1).standard_normal(24_000), 16_000)
    assert call("transcribe", f"model.checkpoint={folder}", f"audio={tmp_path / 'noise.wav'}", "output=o")[0] == 0
    values = json.loads((tmp_path / "o" / "transcripts.jsonl").read_text())["values"]
    theirs = stock(folder, read_audio(tmp_path / "noise.wav"))
    assert values == {name: pytest.approx(value, rel=1e-4) for name, value in theirs.items()}


@settings(max_examples=20)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_written_value_is_the_float32_that_was_computed(value):
    assert np.float32(Values({"x": value}).as_record()["values"]["x"]) == pytest.approx(np.float32(value), rel=1e-6)


def test_evaluate_refuses_heads_without_labels_of_recordings(call, tmp_path):
    folder = checkpoint(tmp_path / "x", "wav2vec2-group", "ForXVector", **X_VECTOR)
    code, _, err = call("evaluate", f"model.checkpoint={folder}")
    assert code == 2
    assert "gives embeddings of speakers, which evaluate does not measure" in err


@pytest.mark.parametrize(
    ("changes", "outputs", "problem"),
    [
        ({"problem_type": REGRESSION}, "3: arousal, dominance, valence", REGRESSION),
        ({}, "3: arousal, dominance, valence", f"{SINGLE_LABEL} (the config has none)"),
        ({"id2label": {0: "LABEL_0"}}, "1: LABEL_0 (the checkpoint does not name them)",
         f"{REGRESSION} (the config has none)"),
        ({"problem_type": "classes"}, "3: arousal, dominance, valence", "classes, which is not known"),
    ],
)  # fmt: skip
def test_load_says_what_the_outputs_are(changes, outputs, problem, tmp_path):
    folder = checkpoint(tmp_path / "m", "wav2vec2-group", **changes)
    report = dict(describe_checkpoint(load_checkpoint(folder, with_head=True)))
    assert report["outputs"] == outputs
    assert report["problem type"] == problem
    assert "outputs" not in dict(describe_checkpoint(load_checkpoint(TINY, with_head=True)))
