"""The conversion: nothing is lost that was not asked to go, and what cannot be converted is named."""

import json
import signal

import numpy as np
import pytest
import torch
from conftest import IDS
from test_feature_sets import check

from w2v_attn import open_features
from w2v_attn.feature_files import write_features
from w2v_attn.features import conversion_folder, transform
from w2v_attn.features.formats.layouts import LAYOUTS, get_layout
from w2v_attn.features.recording_names import ids_by_name


@pytest.fixture
def convert(call, tmp_path, mirrored):
    """Runs the command on the mirrored folder -> (exit code, output, error); the result is in tmp_path/output."""

    def run(*arguments, output="out"):
        return call("convert", f"features={mirrored}", f"output={tmp_path / output}", *arguments)

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_again_nothing_is_lost(call, convert, corpus, tmp_path, layout):
    if LAYOUTS[layout].library:
        pytest.importorskip(LAYOUTS[layout].library)
    code, out, err = convert(f"layout={layout}")
    assert (code, err) == (0, "")
    assert "6 of 6" in out
    assert call("convert", f"features={tmp_path / 'out'}", f"output={tmp_path / 'back'}", "layout=mirrored")[0] == 0
    check(open_features(tmp_path / "back"), corpus)
    assert open_features(tmp_path / "back").layout == "mirrored"
    assert not list(tmp_path.rglob(".tmp-*"))
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["whole"] is True


def test_what_overflows_is_named_counted_and_not_written(convert, mirrored, corpus, tmp_path):
    features, metadata = corpus["a.wav"]
    features["layer_10"][0, 1:3] = torch.tensor([70_000.0, -65_520.0])  # 65,519 is still rounded down to 65,504
    features["layer_10"][0, 0] = torch.inf  # it was infinite before
    write_features(mirrored / "a.wav.safetensors", features, metadata)
    code, out, _ = convert("output_dtype=float16")
    assert code == 1
    assert "5 of 6" in out
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    reason = json.loads(line)["reason"]
    assert json.loads(line)["id"] == "a.wav"
    assert "layer_10: 2 of 5 values are beyond float16, which ends at 65504; the largest is 70000" in reason
    assert "output_dtype=bfloat16" in reason
    found = open_features(tmp_path / "out")
    assert sorted(found) == sorted(set(corpus) - {"a.wav"})
    assert torch.equal(found["a.flac"]["final"], corpus["a.flac"][0]["final"].half())
    assert found.metadata("a.flac")["output_dtype"] == "float16"
    assert convert("output_dtype=bfloat16", output="bfloat16")[0] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_that_become_0_are_written_and_counted(convert, mirrored, corpus, tmp_path, layout):
    if LAYOUTS[layout].library:
        pytest.importorskip(LAYOUTS[layout].library)
    features, metadata = corpus["a.wav"]
    # float16's least value is 2**-24: what is above half of it is rounded up.
    features["layer_10"][0, :4] = torch.tensor([2**-25, -(2**-26), 1.01 * 2**-25, 0.0])
    features["final"][0, 0] = 1e-9
    write_features(mirrored / "a.wav.safetensors", features, metadata)
    if "float16" not in get_layout(layout).writer.dtypes:
        assert convert(f"layout={layout}", "output_dtype=float16")[0] == 2
        return
    code, out, err = convert(f"layout={layout}", "output_dtype=float16")
    assert (code, err) == (0, "")
    said = " ".join(out.replace("│", "").split())
    assert "6 of 6" in said
    assert "underflow 3 values in 1 recording became 0: below float16's range, output_dtype=float32 keeps them" in said
    found = open_features(tmp_path / "out")
    assert torch.equal(found["a.wav"]["layer_10"], features["layer_10"].half())
    assert {id: found.metadata(id).get("underflowed") for id in found} == {**dict.fromkeys(corpus), "a.wav": "3"}
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["underflow"] == {"values": 3, "recordings": 1}
    assert "underflow" not in convert(f"layout={layout}", output="whole")[1]


def test_means_of_half_precision_that_become_0_are_counted(call, corpus, tmp_path):
    for number, (id, (features, metadata)) in enumerate(corpus.items()):
        half = {layer: tensor.half() for layer, tensor in features.items()}
        if number == 0:
            half["final"][:, 0] = 0
            half["final"][0, 0] = 2**-24  # of seven frames
        said = {**metadata, "dtype": "float16", **({} if number else {"underflowed": "6"})}
        write_features(tmp_path / "half" / f"{id}.safetensors", half, said)
    code, out, _ = call("convert", f"features={tmp_path / 'half'}", f"output={tmp_path / 'out'}", "pooling=mean")
    assert code == 0
    assert "1 value in 1 recording became 0: below half precision's range, output_dtype=float32 keeps" in " ".join(
        out.split()
    )
    found = open_features(tmp_path / "out")
    assert found.metadata(next(iter(corpus)))["underflowed"] == "7"  # those of before, and this one


def test_a_damaged_file_is_named_and_the_others_are_converted(convert, mirrored, corpus, tmp_path):
    path = mirrored / f"{IDS[0]}.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    code, out, _ = convert()
    assert code == 1
    assert "a.flac" in out
    check(open_features(tmp_path / "out"), {id: what for id, what in corpus.items() if id != IDS[0]})


WRONG = {
    "no such layout": (["layout=hdf4"], "layout must be one of"),
    "no such dtype": (["output_dtype=float8"], "output_dtype must be one of"),
    "no such layer": (["layers=layer_03"], "there is no layer_03, it has embed, layer_02"),
    "no such range": (["layers=layer_02-layer_09"], "there is no layer_09"),
    "no such pooling": (["pooling=max"], "pooling must be one of none, mean, statistics"),
    "segments without pooling": (["segments=x.csv"], "give pooling=mean"),
    "no such segments": (["pooling=mean", "segments=absent.csv"], "cannot be read"),
    "too few weights": (["layer_weights=[0.5,0.5]"], "2 weights for 4 layers"),
    "no such checkpoint": (["layer_weights=absent"], "neither a checkpoint"),
    "no such features": (["features=absent"], "no folder absent"),
    "no features": (["features=."], "overlap"),
    "a dtype that is not held": (
        ["layout=npy", "output_dtype=bfloat16"],
        "npy cannot store bfloat16: output_dtype=float32 keeps",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gives_code_2_and_leaves_nothing(convert, tmp_path, case):
    arguments, said = WRONG[case]
    code, _, err = convert(*arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_nothing_is_mixed_in_one_folder(call, convert, mirrored, corpus, tmp_path):
    assert call("convert", f"features={mirrored}", f"output={mirrored / 'inside'}")[0] == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    assert "not empty" in convert(output="full")[2]
    assert convert()[0] == 0
    assert "holds another conversion" in convert("layout=npy")[2]
    assert convert()[0] == 0  # the same again
    check(open_features(tmp_path / "out"), corpus)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interruption_leaves_what_is_whole_and_the_same_command_ends_it(
    convert,
    corpus,
    tmp_path,
    monkeypatch,
    layout,
):
    if LAYOUTS[layout].library:
        pytest.importorskip(LAYOUTS[layout].library)
    right = transform.cast

    def interrupted(tensor, dtype, layer):
        if tensor.shape[0] == 5 and layer == "final":  # of the third recording
            signal.raise_signal(signal.SIGTERM)
        return right(tensor, dtype, layer)

    monkeypatch.setattr(transform, "cast", interrupted)
    code, out, err = convert(f"layout={layout}")
    monkeypatch.undo()
    assert code == 143
    assert "not reached" in out
    assert "start again with the same command" in err
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    if layout in ("mirrored", "npy"):  # a recording's files are its own
        found = open_features(tmp_path / "out")
        check(found, {id: corpus[id] for id in sorted(IDS)[:3]})
        assert "did not finish" in conversion_folder.incomplete_reason(tmp_path / "out", 3)
    elif layout == "shards":
        assert len(open_features(tmp_path / "out")) == 0
    else:
        with pytest.raises(ValueError, match="no features"):
            open_features(tmp_path / "out")
    assert convert(f"layout={layout}")[0] == 0
    assert conversion_folder.incomplete_reason(tmp_path / "out", 6) is None
    check(open_features(tmp_path / "out"), corpus)


def test_a_recording_that_went_from_a_conversion_is_missed(convert, tmp_path, caplog):
    assert convert("layout=mirrored")[0] == 0
    (tmp_path / "out" / "a.wav.safetensors").unlink()
    assert len(open_features(tmp_path / "out")) == 5
    assert "there are 5 recordings, its conversion wrote 6" in caplog.text


def test_a_full_disk_is_told_and_the_same_command_ends_it(convert, corpus, tmp_path, monkeypatch):
    import errno

    from w2v_attn import feature_files

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_files, "written_whole", full)
    code, _, err = convert()
    monkeypatch.undo()
    assert code == 1
    assert "No space left on device" in err
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert convert()[0] == 0
    check(open_features(tmp_path / "out"), corpus)


def test_layers_are_chosen_by_name_and_range(convert, corpus, tmp_path):
    assert convert("layers=[final,layer_02-layer_10]")[0] == 0
    found = open_features(tmp_path / "out")
    for id, (features, _) in corpus.items():
        assert found[id].layers == ("layer_02", "layer_10", "final")
        assert found.metadata(id)["layers"] == "layer_02,layer_10,final"
        assert torch.equal(found[id]["layer_10"], features["layer_10"])


def test_layers_are_summed_by_fixed_weights(convert, corpus, tmp_path):
    assert convert("layers=[layer_02,final]", "layer_weights=[0.25,2]")[0] == 0
    assert convert("layer_weights=mean", output="mean")[0] == 0
    found, mean = open_features(tmp_path / "out"), open_features(tmp_path / "mean")
    for id, (features, _) in corpus.items():
        assert found[id].layers == ("sum",)
        torch.testing.assert_close(found[id]["sum"], 0.25 * features["layer_02"] + 2 * features["final"])
        torch.testing.assert_close(mean[id]["sum"], sum(features.values()) / 4)
        assert json.loads(found.metadata(id)["layer_weights"]) == {"layer_02": 0.25, "final": 2.0}


def test_learned_weights_of_a_checkpoint_give_its_own_sum(call, tmp_path):
    from conftest import SPEECH, save, tiny_model

    model = tiny_model("wav2vec2-layer", "ForSequenceClassification", use_weighted_layer_sum=True)
    with torch.no_grad():
        model.layer_weights.copy_(torch.randn(4))
    folder = save(model, tmp_path / "model")
    audio = sorted(SPEECH.rglob("*.flac"))[0]
    checkpoint = ["model=local", f"model.checkpoint={folder}"]
    assert call("extract", *checkpoint, f"audio={audio}", "layers=all", f"output={tmp_path / 'features'}")[0] == 0
    assert (
        call("convert", f"features={tmp_path / 'features'}", f"output={tmp_path / 'out'}", f"layer_weights={folder}")[0]
        == 0
    )
    ours = open_features(tmp_path / "out")[audio.name]["sum"]

    from transformers import Wav2Vec2FeatureExtractor

    from w2v_attn import read_audio

    inputs = Wav2Vec2FeatureExtractor(do_normalize=True)(
        read_audio(audio).numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        states = model.wav2vec2(inputs.input_values, output_hidden_states=True).hidden_states
        theirs = (torch.stack(states, 1) * model.layer_weights.softmax(-1).view(-1, 1, 1)).sum(1)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mean", "statistics"])
def test_pooling_gives_a_vector_for_each_recording(convert, corpus, tmp_path, kind):
    assert convert(f"pooling={kind}")[0] == 0
    found = open_features(tmp_path / "out")
    for id, (features, _) in corpus.items():
        x = features["final"].double().numpy()
        expected = x.mean(0) if kind == "mean" else np.concatenate([x.mean(0), x.std(0)])
        torch.testing.assert_close(found[id]["final"].double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match="it has no frames"):
            found.times(id, "final")


SEGMENTS = {
    "csv": "id,start,end,label\na.flac,0,0.05,ə\n{}.wav,0.03,0.2,k\na.flac,0.05,0.055,\n",
    "tsv": "id\tend\tstart\tlabel\na.flac\t0.05\t0\tə\n{}\t0.2\t0.03\tk\na.flac\t0.055\t0.05\t\n",
    "rttm": "SPEAKER a.flac 1 0 0.05 <NA> <NA> ə\nLEXEME x\nSPEAKER {} 1 0.03 0.17 <NA> <NA> k\n"
    "SPEAKER a.flac 1 0.05 0.005 <NA> <NA>  <NA>\n",
}


@pytest.mark.parametrize("kind", SEGMENTS)
def test_spans_are_pooled_over_the_frames_whose_centres_are_in_them(convert, corpus, tmp_path, kind):
    (tmp_path / f"spans.{kind}").write_text(SEGMENTS[kind].format("b c/x/final" if kind != "rttm" else "😀"))
    other = "b c/x/final.wav" if kind != "rttm" else "😀.ogg"
    code, out, err = convert("pooling=mean", f"segments={tmp_path / f'spans.{kind}'}", "layers=final")
    assert (code, err) == (0, "")
    assert "without segments │ 4" in out
    found = open_features(tmp_path / "out")
    assert sorted(found) == ["a.flac", other]
    # Centres are at 12.5, 32.5, 52.5 … ms; none is in the last span, whose middle the third is nearest to.
    x = corpus["a.flac"][0]["final"]
    torch.testing.assert_close(found["a.flac"]["final"], torch.stack([x[0:2].mean(0), x[2]]))
    y = corpus[other][0]["final"]
    torch.testing.assert_close(found[other]["final"], y[1:10].mean(0)[None])
    spans = json.loads(found.metadata("a.flac")["spans"])
    assert [span[:2] for span in spans] == [[0.0, 0.05], [0.05, pytest.approx(0.055)]]
    assert spans[0][2] == "ə"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,start\n", "no column end"),
        ("id,start,end\n", "no lines"),
        ("id,start,end\na.flac,0.3,0.2\n", "line 2: start and end must be seconds"),
        ("id,start,end\na.flac,0,nan\n", "line 2: start and end must be seconds"),
        ("id,start,end\na.flac,0,1\nb.flac,0,1\n", "line 3: b.flac, of which there are no features"),
        ("id,start,end\na,0,1\n", "line 2: a, which could be a.flac or a.wav"),
        ("id,start,end\nfinal.flac,0,1\n", "line 2: final.flac, of which there are no features; an id is a.flac"),
    ],
)
def test_a_wrong_line_of_segments_is_named(convert, tmp_path, text, said):
    (tmp_path / "spans.csv").write_text(text)
    code, _, err = convert("pooling=mean", f"segments={tmp_path / 'spans.csv'}")
    assert code == 2
    assert said in err


def test_segments_name_recordings_as_briefly_as_is_clear():
    ids = ["a/1.wav", "b/2.wav", "c/2.flac", "1", "b/3.wav", "d/3"]
    names = ids_by_name(ids)
    assert names["a/1.wav"] == names["a/1"] == names["1.wav"] == ("a/1.wav",)
    assert names["1"] == ("1",)  # an id before another's name
    assert names["2"] == ("b/2.wav", "c/2.flac")
    assert names["2.flac"] == ("c/2.flac",)
    assert names["d/3"] == ("d/3",)


def test_a_span_beyond_the_end_is_named(convert, tmp_path):
    (tmp_path / "spans.csv").write_text("id,start,end\na.flac,0,0.1\na.wav,9,10\n")
    code, _, _ = convert("pooling=mean", f"segments={tmp_path / 'spans.csv'}")
    assert code == 1
    assert "the span 9 to 10 s begins after its end" in (tmp_path / "out" / "failures.jsonl").read_text()


def test_a_library_that_is_missing_is_told_with_the_command(convert, monkeypatch, tmp_path):
    from w2v_attn.features.formats import layouts

    needing = next(layout for layout in LAYOUTS.values() if layout.library is not None)
    monkeypatch.setattr(layouts, "find_spec", lambda name: None)
    code, _, err = convert(f"layout={needing.name}")
    assert code == 2
    assert f"needs {needing.library}: pip install 'w2v_attn[formats]'" in err
    assert not (tmp_path / "out").exists()
