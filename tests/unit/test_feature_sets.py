"""Features on disk: what is read is what was written, whatever the layout; what cannot be read is told by its name."""

import os
import pickle

import pytest
import torch
from conftest import IDS, LAYERS, SPEECH, made
from torch.utils.data import DataLoader

from w2v_attn import open_features
from w2v_attn.feature_files import write_features
from w2v_attn.features.feature_errors import DamagedError, FeatureSetError, UnknownNameError
from w2v_attn.features.formats import safetensors_shards, shard_index
from w2v_attn.features.formats.interface import PerProcess
from w2v_attn.features.formats.layouts import LAYOUTS, get_layout
from w2v_attn.features.open_features import pad_batch


def written(name, corpus, folder, **options):
    """The folder, with a corpus in a layout."""
    layout = get_layout(name)
    if layout.library is not None:
        pytest.importorskip(layout.library)
    with layout.writer(folder, **options) as writer:
        for id, (features, metadata) in corpus.items():
            writer.write(id, features, metadata)
    return folder


def same_bits(ours, theirs):
    """Whether two tensors are of one type and shape, and equal to the bit, NaN and −0 included."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def check(found, corpus):
    """A feature set holds what a corpus is, all of it and nothing else."""
    assert sorted(found) == sorted(corpus)
    assert len(found) == len(corpus)
    for id, (features, metadata) in corpus.items():
        assert id in found
        assert found[id].layers == tuple(features)
        assert found.metadata(id) == metadata
        for layer, tensor in features.items():
            assert same_bits(found[id][layer], tensor)


def test_what_is_read_is_what_was_written(mirrored, corpus):
    check(open_features(mirrored), corpus)
    assert list(open_features(mirrored)) == sorted(corpus)


def test_what_extract_wrote_can_be_opened(call, tmp_path):
    assert call("extract", f"audio={SPEECH / 'en-us+m5'}", "layers=[layer_02,final]")[0] == 0
    found = open_features(tmp_path / "features")
    recording = found["00-three.flac"]
    assert recording.layers == ("layer_02", "final")
    times = recording.times("final")
    assert len(times) == len(recording["final"])
    duration = int(recording.metadata["samples"]) / 16_000
    assert times[0] == pytest.approx(200 / 16_000)
    assert duration - 0.04 < times[-1] < duration


def test_a_recordings_tensor_is_the_callers_own(mirrored, corpus):
    recording = open_features(mirrored)["a.wav"]
    recording["final"].zero_()
    assert torch.equal(recording["final"], corpus["a.wav"][0]["final"])


def test_an_unknown_name_is_told_with_those_that_are_like_it(mirrored):
    found = open_features(mirrored)
    with pytest.raises(UnknownNameError, match=r"no recording a\.wave .* did you mean a\.wav"):
        found["a.wave"]
    with pytest.raises(KeyError):
        found["a.wave"]
    with pytest.raises(UnknownNameError, match=r"no layer layer_03: it has embed, layer_02, layer_10, final"):
        found["a.wav"]["layer_03"]
    assert found.get("a.wave") is None


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_name_means_a_recording_by_the_rule_of_segments(name, corpus, tmp_path):
    """`b c/é (1).wav` is also `b c/é (1)`, `é (1).wav` and `é (1)`; a name of two recordings means none."""
    if LAYOUTS[name].library is not None:
        pytest.importorskip(LAYOUTS[name].library)
    found = open_features(written(name, corpus, tmp_path / name))
    for id in ("b c/é (1)", "é (1).wav", "é (1)", "b c/é (1).wav"):
        assert id in found
        assert found[id].id == "b c/é (1).wav"
    with pytest.raises(UnknownNameError, match=r"a could be any of 2 recordings in .*: a\.flac, a\.wav"):
        found["a"]
    assert "a" not in found
    assert found.get("a") is None
    assert found.get("x").id == "b c/x"  # a whole id, or an id without its folders, before an id without an extension
    assert 5 not in found


def test_feature_sets_and_recordings_say_what_they_are(mirrored):
    found = open_features(mirrored)
    assert repr(found) == f"FeatureSet('{mirrored}': 6 recordings, layout mirrored)"
    assert repr(found["a.wav"]) == "RecordingFeatures('a.wav': embed, layer_02, layer_10, final)"
    assert repr(found.as_dataset("final")) == "FeatureDataset(6 recordings of final)"
    assert pickle.loads(pickle.dumps(found))["é (1)"].id == "b c/é (1).wav"


def test_spans_and_tables(tmp_path, corpus):
    pandas = pytest.importorskip("pandas")
    values, bfloat = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)
    spans = '[[0.0, 0.5, "a"], [0.5, 1.25, "b"]]'
    write_features(tmp_path / "s" / "x.safetensors", {"final": values}, {"pooling": "mean", "spans": spans})
    write_features(tmp_path / "s" / "y.safetensors", {"final": bfloat}, {"pooling": "mean", "spans": spans})
    found = open_features(tmp_path / "s")
    assert [tuple(span) for span in found["x"].spans] == [(0.0, 0.5, "a"), (0.5, 1.25, "b")]
    assert found["x"].spans[1].label == "b"
    expected = pandas.DataFrame(
        {"id": ["x", "x"], "start": [0.0, 0.5], "end": [0.5, 1.25], "label": ["a", "b"], 0: [0.0, 3.0], 1: [1.0, 4.0],
         2: [2.0, 5.0]}
    )  # fmt: skip
    pandas.testing.assert_frame_equal(found.to_pandas(ids=["x"]), expected, check_dtype=False)
    assert len(found.to_pandas()) == 4
    write_features(tmp_path / "v" / "x.safetensors", {"final": values[0]}, {"pooling": "mean"})
    assert open_features(tmp_path / "v").to_pandas().to_dict("records") == [{"id": "x", 0: 0.0, 1: 1.0, 2: 2.0}]
    write_features(tmp_path / "f" / "x.safetensors", {"final": values, "embed": values}, {"frame_rate": "50"})
    frames = open_features(tmp_path / "f")
    assert frames["x"].spans == []
    assert frames["x"].to_pandas("final")["time"].tolist() == [0.0125, 0.0325]
    with pytest.raises(FeatureSetError, match="several layers, embed, final: name one"):
        frames.to_pandas()


def test_a_damaged_file_is_named_and_the_others_are_read(mirrored):
    path = mirrored / "a.wav.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = open_features(mirrored)
    with pytest.raises(DamagedError, match=r"a\.wav\.safetensors"):
        found["a.wav"]["final"]
    assert len(found["a.flac"]["final"]) == 7


def test_folders_without_features_are_told(tmp_path):
    with pytest.raises(FeatureSetError, match="no folder"):
        open_features(tmp_path / "absent")
    with pytest.raises(FeatureSetError, match="no features"):
        open_features(tmp_path)


def test_frames_have_the_centres_of_their_windows(corpus, tmp_path):
    features, metadata = corpus["a.flac"]
    write_features(tmp_path / "x.safetensors", features, {**metadata, "frame_rates": '{"final": 50, "layer_02": 25}'})
    found = open_features(tmp_path)
    # Samples [320 t, 320 t + 400), and two such frames together.
    centres = [(320 * t + 200) / 16_000 for t in range(7)]
    torch.testing.assert_close(found.times("x", "final"), torch.tensor(centres, dtype=torch.float64))
    pairs = [(640 * t + (320 + 400) / 2) / 16_000 for t in range(7)]
    torch.testing.assert_close(found.times("x", "layer_02"), torch.tensor(pairs, dtype=torch.float64))
    write_features(tmp_path / "y.safetensors", features, {})
    with pytest.raises(FeatureSetError, match="frame_rate"):
        open_features(tmp_path).times("y", "final")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_serves_the_workers_of_a_dataloader(corpus, tmp_path, layout):
    found = open_features(written(layout, corpus, tmp_path / layout))
    assert len(found["a.wav"]["final"]) == 1  # what is open here must not be shared with a worker
    dataset = found.as_dataset("layer_02", ids=IDS)
    id, tensor = pickle.loads(pickle.dumps(dataset))[2]  # as a worker that is spawned gets it
    assert torch.equal(tensor, corpus[id][0]["layer_02"])
    seen = []
    for ids, batch, lengths in DataLoader(dataset, 2, num_workers=2, collate_fn=pad_batch):
        for id, tensor, length in zip(ids, batch, lengths, strict=True):
            assert torch.equal(tensor[:length], corpus[id][0]["layer_02"])
            assert not tensor[length:].any()
            seen.append(id)
    assert seen == IDS


def test_what_is_open_in_one_process_is_opened_again_in_another(monkeypatch):
    opened = PerProcess(object)
    first = opened.get()
    assert opened.get() is first
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert opened.get() is not first


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_every_bit_and_every_name(corpus, tmp_path, layout):
    odd = corpus["a.flac"][0]["final"]
    odd[0, :3] = torch.tensor([-0.0, torch.inf, torch.nan])
    corpus["a.wav"][1]["spans"] = "x" * 100_000
    corpus["a.wav"][0]["embed"].zero_().neg_()  # nothing but −0
    found = open_features(written(layout, corpus, tmp_path / layout))
    assert found.layout == layout
    check(found, corpus)


HOLDS = {"mirrored": "float64 float32 float16 bfloat16", "shards": "float64 float32 float16 bfloat16"}
HOLDS |= {"kaldi": "float64 float32"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_dtype_is_kept_or_refused(tmp_path, layout, dtype):
    corpus = {"a.wav": made(1, 3, ("embed", "final"), getattr(torch, dtype))}
    if dtype in HOLDS.get(layout, "float64 float32 float16").split():
        check(open_features(written(layout, corpus, tmp_path / layout)), corpus)
    else:
        with pytest.raises(FeatureSetError, match=f"cannot store {dtype}: output_dtype=float32 keeps every value"):
            written(layout, corpus, tmp_path / layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_of_pooled_features_are_kept(tmp_path, layout):
    corpus = {id: ({"final": torch.randn(6)}, {"pooling": "mean"}) for id in IDS}
    check(open_features(written(layout, corpus, tmp_path / layout)), corpus)


def test_shards_are_cut_by_size_and_are_ordinary_safetensors(corpus, tmp_path):
    from safetensors import safe_open

    folder = written("shards", corpus, tmp_path, size=7 * 5 * 4 * 4)  # the first recording fills one
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2
    check(open_features(folder), corpus)
    assert list(open_features(folder)) == IDS  # in the order in which they came
    with safe_open(folder / files[0], "pt") as file:
        assert sorted(file.keys()) == sorted(f"a.flac/{layer}" for layer in LAYERS)


def test_shards_are_cut_before_their_headers_are_too_large(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_HEADER_BYTES", 700)
    folder = written("shards", corpus, tmp_path)
    headers = [len(shard_index.read_shard_header(path)) for path in folder.glob("*.safetensors")]
    assert len(headers) > 2
    assert max(headers) < 2 * 700
    check(open_features(folder), corpus)


def test_a_damaged_shard_loses_no_other(corpus, tmp_path):
    folder = written("shards", corpus, tmp_path, size=1)
    shard = folder / "features-00001.safetensors"
    whole = shard.read_bytes()
    for damaged, said in [
        (whole[:-1], "expected"),
        (whole.replace(b"layer_02", b"layer_03"), "not the shard"),
        (b"", "0 bytes"),
        (None, "No such file"),
    ]:
        shard.unlink() if damaged is None else shard.write_bytes(damaged)
        found = open_features(folder)
        with pytest.raises(DamagedError, match=f"features-00001.safetensors .*{said}"):
            found["a.wav"]
        assert torch.equal(found["a.flac"]["final"], corpus["a.flac"][0]["final"])


def test_a_damaged_index_is_told(corpus, tmp_path):
    index = written("shards", corpus, tmp_path) / safetensors_shards.INDEX
    index.write_bytes(b"hello" * 1000)
    with pytest.raises(DamagedError, match=r"index\.sqlite cannot be read"):
        open_features(tmp_path)


def test_shards_without_their_index_are_not_taken_for_recordings(corpus, tmp_path):
    (written("shards", corpus, tmp_path) / safetensors_shards.INDEX).unlink()
    with pytest.raises(DamagedError, match=r"is a shard without its index\.sqlite"):
        open_features(tmp_path)["features-00000"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_others_may_read_what_the_umask_lets_them(corpus, tmp_path, layout):
    before = os.umask(0o027)
    try:
        folder = written(layout, corpus, tmp_path / layout)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}


def test_shards_that_were_interrupted_hold_what_is_whole(corpus, tmp_path):
    def interrupted():
        with get_layout("shards").writer(tmp_path) as writer:
            writer._filling = shard_index.ShardBuffer(1)
            writer.write("whole", *corpus["a.flac"])
            writer._filling = shard_index.ShardBuffer(1 << 30)
            writer.write("lost", *corpus["a.flac"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    check(open_features(tmp_path), {"whole": corpus["a.flac"]})
    check(open_features(written("shards", corpus, tmp_path)), corpus)  # the same again starts anew


def test_a_hundred_thousand_recordings_open_in_a_moment(corpus, tmp_path):
    import sqlite3
    import time

    written("shards", corpus, tmp_path)
    with sqlite3.connect(tmp_path / safetensors_shards.INDEX) as index:
        ((tensors, metadata),) = index.execute("SELECT tensors, metadata FROM recordings WHERE id = 'a.wav'")
        rows = ((f"speaker-{n % 997}/utterance {n}.flac", tensors, metadata) for n in range(100_000))
        index.executemany("INSERT INTO recordings (id, shard, tensors, metadata) VALUES (?, 0, ?, ?)", rows)
    started = time.perf_counter()
    found = open_features(tmp_path)
    assert len(found) == 100_006
    assert torch.equal(found["speaker-299/utterance 99999.flac"]["final"], corpus["a.wav"][0]["final"])
    assert time.perf_counter() - started < 1
    assert len(found.as_dataset("final")) == 100_006
    with pytest.raises(UnknownNameError, match=r"did you mean speaker-\d+/utterance 9999\d\.flac"):
        found["speaker-298/utterance 99999.flac"]
    assert time.perf_counter() - started < 3


def test_kaldi_reads_the_archives(corpus, tmp_path):
    kaldi = pytest.importorskip("kaldi_native_io")
    folder = written("kaldi", corpus, tmp_path)
    for kind, file in (("scp", "final.scp"), ("ark", "final.ark")):
        with kaldi.SequentialFloatMatrixReader(f"{kind}:{folder / file}") as reader:
            found = {key.replace("%20", " "): torch.from_numpy(array.copy()) for key, array in reader}
        assert set(found) == set(corpus)
        assert all(torch.equal(found[id], features["final"]) for id, (features, _) in corpus.items())


def test_webdataset_reads_the_tar_files(corpus, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    folder = written("webdataset", corpus, tmp_path)
    samples = webdataset.WebDataset(str(folder / "features-000000.tar"), shardshuffle=False).decode()
    found = {sample["json"]["id"]: torch.from_numpy(sample["layer_02.npy"]) for sample in samples}
    assert set(found) == set(corpus)
    assert all(torch.equal(found[id], features["layer_02"]) for id, (features, _) in corpus.items())


def test_hugging_face_datasets_knows_the_columns_of_the_parquet_files(corpus, tmp_path):
    datasets, parquet = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    folder = written("parquet", corpus, tmp_path)
    columns = datasets.Features.from_arrow_schema(parquet.read_schema(folder / "features-00000.parquet"))
    assert set(columns) == {"id", "metadata", *LAYERS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_of_any_layout_is_told_by_its_name(corpus, tmp_path, layout):
    folder = written(layout, corpus, tmp_path)
    path = next(
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".json", ".sqlite")
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])

    def read_all():
        for recording in open_features(folder).values():
            for layer in recording:
                recording[layer]

    with pytest.raises(DamagedError, match="a.flac/embed" if layout == "zarr" else path.name):
        read_all()
