"""What extraction makes of layers before they are written is what convert makes of them afterwards."""

import json

import pytest
import torch
from conftest import SPEECH, save, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_feature_sets import same_bits

from w2v_attn import load_encoder, open_features
from w2v_attn.cli import app
from w2v_attn.dtypes import DTYPES
from w2v_attn.encoder.layers import check_layers
from w2v_attn.extraction.feature_spec import FeatureSpec
from w2v_attn.features.transform import FeatureTransform, count_underflow
from w2v_attn.runs import prefetch

CLIPS = SPEECH / "en-us+m5"


@pytest.fixture
def extract(call, tmp_path):
    """Runs the command on two clips -> (exit code, output, error); the result is in tmp_path/OUTPUT."""

    def run(*arguments, output="out"):
        return call("extract", f"audio={CLIPS}", f"output={tmp_path / output}", *arguments)

    return run


@pytest.fixture
def phones(tmp_path):
    """A file of segments for both clips."""
    (tmp_path / "phones.csv").write_text(
        "id,start,end,label\n00-three.flac,0.1,0.3,ə\n00-three.flac,0.3,0.31,k\n21-down,0,0.4,\n"
    )
    return tmp_path / "phones.csv"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All layers of the clips as they are."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.raises(SystemExit):
        app.main(["extract", f"audio={CLIPS}", f"output={folder}", "layers=all"])
    return folder


CASES = {
    "a range": (["layers=[layer_01-layer_03]"], []),
    "statistics": (["layers=[layer_02,final]"], ["pooling=statistics", "float16"]),
    "spans": (["layers=[layer_02,final]"], ["pooling=mean", "segments=phones.csv"]),
    "a sum": (["layers=[layer_02,final]"], ["layer_weights=[0.25,2]", "bfloat16"]),
    "all at once": (["layers=all"], ["layer_weights=mean", "pooling=statistics", "segments=phones.csv", "float16"]),
}


FOUND_AGAIN = ("statistics", "all at once")  # one of each layout


@pytest.mark.parametrize("case", CASES)
def test_what_is_made_at_once_is_what_convert_makes_of_whole_features(extract, call, phones, whole, tmp_path, case):
    layers, asked = CASES[case]
    ours = [f"output_dtype={option}" if "=" not in option else option for option in asked]
    theirs = [f"output_dtype={option}" if "=" not in option else option for option in asked]
    layout = "layout=shards" if len(case) % 2 else "layout=mirrored"
    assert extract(*layers, *ours, layout)[::2] == (0, "")
    made = call("convert", f"features={whole}", f"output={tmp_path / 'converted'}", *layers, *theirs)
    assert made[::2] == (0, "")
    found, expected = open_features(tmp_path / "out"), open_features(tmp_path / "converted")
    assert sorted(found) == sorted(expected)
    assert len(found) == 2
    for id in expected:
        assert found[id].layers == expected[id].layers
        assert all(same_bits(found[id][layer], expected[id][layer]) for layer in expected[id])
        said = [features.metadata(id) | {"fingerprint": ""} for features in (found, expected)]
        assert said[0] == said[1]
    if case in FOUND_AGAIN:
        code, out, _ = extract(*layers, *ours, layout)
        assert code == 0
        assert f"already there │ {len(found)}" in " ".join(out.split())


def test_rows_without_segments_are_told(extract, phones, tmp_path):
    phones.write_text(phones.read_text().replace("21-down", "00-three"))
    code, out, _ = extract("pooling=mean", f"segments={phones}")
    assert code == 0
    assert "1 of 1" in out
    assert "without segments" in out
    spans = json.loads(open_features(tmp_path / "out").metadata("00-three.flac")["spans"])
    assert spans == [[0.1, 0.3, "ə"], [0.3, 0.31, "k"], [0.0, 0.4, ""]]


def test_learned_weights_are_taken(extract, tmp_path):
    model = tiny_model("wav2vec2-layer", "ForSequenceClassification", use_weighted_layer_sum=True)
    with torch.no_grad():
        model.layer_weights.copy_(torch.randn(4))
    folder = save(model, tmp_path / "model")
    checkpoint = ["model=local", f"model.checkpoint={folder}"]
    code, _, err = extract(*checkpoint, f"layer_weights={folder}", output="refused")
    assert code == 2
    assert "it lacks embed, layer_01, layer_02, layer_03: extract layers=all" in err
    assert not (tmp_path / "refused").exists()
    assert extract(*checkpoint, f"layer_weights={folder}", "layers=all")[0] == 0
    assert extract(*checkpoint, "layers=[embed-layer_03]", output="whole")[0] == 0
    found, whole = open_features(tmp_path / "out"), open_features(tmp_path / "whole")
    weights = model.layer_weights.double().softmax(-1)
    for id, recording in whole.items():
        expected = sum(weight.item() * x for weight, x in zip(weights, recording.values(), strict=True))
        torch.testing.assert_close(found[id]["sum"], expected)
        assert len(found.times(id, "sum")) == len(expected)


@pytest.mark.parametrize("layout", ["mirrored", "shards"])
def test_what_overflows_is_named_and_not_written(layer_checkpoint, tmp_path, monkeypatch, layout):
    from w2v_attn.corpus.listing import list_recordings
    from w2v_attn.extraction.extracting import extract_corpus

    encoder = load_encoder(layer_checkpoint)
    right = encoder.extract

    def loud(*arguments):
        found = right(*arguments)
        found[0]["final"][0, 0] = 70_000.0
        return found

    monkeypatch.setattr(encoder, "extract", loud)
    made = extract_corpus(
        encoder, list_recordings(CLIPS).rows, tmp_path / "out", layers=["final"], max_duration=60, layout=layout,
        transform=FeatureTransform(output_dtype="float16"),
    )  # fmt: skip
    (reason,) = [outcome.reason for outcome in made if outcome.reason is not None]
    assert "final: 1 of" in reason
    assert (
        "beyond float16, which ends at 65504; the largest is 70000: output_dtype=bfloat16 or output_dtype=float32"
        in reason
    )
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] not in open_features(tmp_path / "out")


@settings(deadline=None)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -2.0, 2**-24, 2**-25, -(2**-25), 1.01 * 2**-25, -1e-9, 1e-40, 1e-44, -1e-60])
        | st.just(float("nan")),
        max_size=40,
    ),
    before=st.sampled_from(list(DTYPES.values())),
    after=st.sampled_from(list(DTYPES.values())),
)
def test_exactly_the_values_that_became_0_are_counted(values, before, after):
    tensor = torch.tensor(values, dtype=torch.float64).to(before)
    made = tensor.to(after)
    assert count_underflow(tensor, made) == sum(x != 0 and y == 0 for x, y in zip(tensor, made, strict=True))


def save_faint(folder):
    """Saves a model of whose final features one value in each frame is 1e-8: what is below 3e-8 is 0 in float16."""
    model = tiny_model("wav2vec2-layer")
    with torch.no_grad():
        model.encoder.layer_norm.weight[3], model.encoder.layer_norm.bias[3] = 0.0, 1e-8
    return save(model, folder)


@pytest.fixture
def faint(tmp_path):
    """What the command reports of such a checkpoint."""
    return ["model=local", f"model.checkpoint={save_faint(tmp_path / 'faint')}"]


@pytest.mark.parametrize("layout", ["mirrored", "shards"])
def test_values_that_become_0_are_written_and_counted_also_by_a_run_that_finds_them(extract, faint, tmp_path, layout):
    for already_there in (False, True):
        code, out, _ = extract(*faint, "output_dtype=float16", f"layout={layout}")
        assert code == 0
        found = open_features(tmp_path / "out")
        frames = {id: len(recording["final"]) for id, recording in found.items()}
        assert len(frames) == 2
        said = " ".join(out.replace("│", "").split())
        became = f"underflow {sum(frames.values())} values in 2 recordings became 0"
        assert f"{became}: below float16's range, output_dtype=float32 keeps them" in said
        assert ("already there 2" in said) == already_there
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert record["underflow"] == {"values": sum(frames.values()), "recordings": 2}
        assert {id: found.metadata(id)["underflowed"] for id in frames} == {id: str(n) for id, n in frames.items()}
        assert all((found[id]["final"][:, 3] == 0).all() for id in frames)
    for number, asked in enumerate([[], ["output_dtype=bfloat16"]]):
        code, out, _ = extract(*faint, *asked, f"layout={layout}", output=f"kept {number}")
        assert code == 0
        assert "underflow" not in out
        kept = open_features(tmp_path / f"kept {number}")
        assert all("underflowed" not in kept.metadata(id) for id in kept)
        record = json.loads((tmp_path / f"kept {number}" / "run.json").read_text())
        assert record["underflow"] == {"values": 0, "recordings": 0}


def test_ranks_count_together_what_became_0(extract, faint, tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("w2v_attn.runs.rank.ROWS_PER_BLOCK", 1)
    for rank in (0, 1):
        code, out, _ = extract(*faint, "output_dtype=float16", f"rank={rank}", "world_size=2")
        assert code == 0
    frames = [len(recording["final"]) for recording in open_features(tmp_path / "out").values()]
    own, together = " ".join(out.replace("│", "").split()).split("Extracted by all ranks")
    assert "in 1 recording became 0" in own
    assert f"{sum(frames)} values in 2 recordings became 0: below float16's range" in together
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["underflow"] == {"values": sum(frames), "recordings": 2}


WRONG = {
    "no such layout": (["layout=tar"], "layout must be one of"),
    "no such dtype": (["output_dtype=float8"], "output_dtype must be one of"),
    "no such pooling": (["pooling=max"], "pooling must be one of none, mean, statistics"),
    "segments without pooling": (["segments=x.csv"], "give pooling=mean"),
    "no such segments": (["pooling=mean", "segments=absent.csv"], "cannot be read"),
    "too few weights": (["layers=all", "layer_weights=[0.5,0.5]"], "2 weights for 6 layers"),
    "one layer to sum": (["layer_weights=mean"], "there is only final: give layers=all, or a range"),
    "no such end of a range": (["layers=layer_02-layer_09"], "no layer layer_09"),
    "a range that is empty": (["layers=layer_03-layer_01"], "the lower layer comes first"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gives_code_2_and_leaves_nothing(extract, tmp_path, case):
    arguments, said = WRONG[case]
    code, _, err = extract(*arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_another_product_is_refused_with_the_difference(extract, phones):
    assert extract("pooling=mean", f"segments={phones}")[0] == 0
    phones.write_text(phones.read_text().replace("0.4", "0.5"))
    code, _, err = extract("pooling=mean", f"segments={phones}")
    assert code == 2
    assert "segments: was sha256" in err
    code, _, err = extract("pooling=statistics", f"segments={phones}", "output_dtype=float16")
    assert code == 2
    assert "pooling: was mean, now statistics" in err
    assert "output_dtype: was not asked for, now float16" in err


def test_a_dtype_that_features_have_anyway_is_no_other_product(layer_checkpoint):
    encoder = load_encoder(layer_checkpoint)
    plain = FeatureSpec(encoder, ("final",)).fingerprint
    assert FeatureSpec(encoder, ("final",), FeatureTransform(output_dtype="float32")).fingerprint == plain
    assert FeatureSpec(encoder, ("final",), FeatureTransform(output_dtype="float16")).fingerprint != plain


def test_a_sum_has_the_frame_rate_of_its_layers(tmp_path, call):
    """SEW's `final` has twice the frames of its blocks."""
    folder = save(tiny_model("sew"), tmp_path / "sew")
    base = [f"audio={CLIPS}", "model=local", f"model.checkpoint={folder}"]
    assert (
        call("extract", *base, "layers=[layer_01-layer_03]", "layer_weights=mean", f"output={tmp_path / 'out'}")[0] == 0
    )
    assert call("extract", *base, "layers=all", f"output={tmp_path / 'whole'}")[0] == 0
    convert = [f"features={tmp_path / 'whole'}", "layers=[layer_01-layer_03]", "layer_weights=mean"]
    assert call("convert", *convert, f"output={tmp_path / 'converted'}")[0] == 0
    id = "00-three.flac"
    whole = open_features(tmp_path / "whole")
    for name in ("out", "converted"):
        times = open_features(tmp_path / name).times(id, "sum")
        assert torch.equal(times, whole.times(id, "layer_01"))
        assert not torch.equal(times, whole.times(id, "final")[: len(times)])
    code, _, err = call("extract", *base, "layers=all", "layer_weights=mean", f"output={tmp_path / 'refused'}")
    assert code == 2
    assert "of other frame rates cannot be summed" in err


def test_ranges_of_layers():
    assert check_layers(["layer_02-final", "embed"], 3) == ("embed", "layer_02", "layer_03", "final")
    assert check_layers("layer_01-layer_02", 3) == ("layer_01", "layer_02")
