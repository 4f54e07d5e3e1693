"""The extraction run: whole files or none, and a reason for every recording that has none."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH
from safetensors import safe_open
from safetensors.torch import load_file, save

from w2v_attn import feature_files, load_encoder, read_audio, whole_files
from w2v_attn.benchmarks.measurement import peak_bytes
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction import extracting, extractor
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.record import RUN


@pytest.fixture
def encoder(group_checkpoint):
    return load_encoder(group_checkpoint)


def run(encoder, rows, output, **options):
    """The outcomes in the order of the rows."""
    made = extracting.extract_corpus(encoder, rows, output, **{"layers": ("final",), "max_duration": 60, **options})
    return sorted(made, key=lambda outcome: rows.index(outcome.row))


def rows_of(*paths):
    return [Row(path.name, path) for path in paths]


def test_a_mirrored_tree_with_a_tensor_for_each_layer_and_what_a_reader_needs(encoder, tmp_path):
    rows = list_recordings(SPEECH).rows[:3]
    outcomes = run(encoder, rows, tmp_path, layers=("layer_02", "final"))
    for row, outcome in zip(rows, outcomes, strict=True):
        assert outcome.result.path == tmp_path / f"{row.id}.safetensors"
        wave = read_audio(row.path)
        expected = encoder.extract([wave], ("layer_02", "final"))[0]
        with safe_open(outcome.result.path, "pt") as file:
            assert sorted(file.keys()) == ["final", "layer_02"]
            for name, tensor in expected.items():
                assert torch.equal(file.get_tensor(name), tensor)
            about = file.metadata()
        assert about["id"] == row.id
        assert about["frame_rate"] == "50"
        assert about["sample_rate"] == "16000"
        assert about["samples"] == str(len(wave))
        assert about["dtype"] == "float32"
        assert about["checkpoint"] == encoder.checkpoint.source
        assert about["format"] == feature_files.FORMAT
        assert about["version"]
        assert about["layers"] == "layer_02,final"
    assert not (tmp_path / FAILURE_LOG).exists()


def test_a_file_is_what_the_library_would_write_but_for_the_order_of_metadata(tmp_path):
    torch.manual_seed(0)
    features = {
        f"{number:02d}": torch.randn(3, 5).to(dtype) for number, dtype in enumerate(feature_files.CODE_OF_DTYPE)
    }
    features |= {
        f"b {number:02d}": 9 * torch.randn(7).to(dtype) for number, dtype in enumerate(feature_files.CODE_OF_DTYPE)
    }
    features["a view"] = torch.randn(8, 6)[::2, ::3]
    path, metadata = tmp_path / "a.safetensors", {"id": "é", "b": "1", "a": "2"}
    feature_files.write_features(path, features, metadata)
    ours, theirs = path.read_bytes(), save({name: tensor.contiguous() for name, tensor in features.items()})
    assert len(ours) == feature_files.written_size(features, metadata)
    headers, contents = [], []
    for file in (ours, theirs):
        length = int.from_bytes(file[:8], "little")
        assert length % 8 == 0
        headers.append(json.loads(file[8 : 8 + length]))
        contents.append(file[8 + length :])
    assert list(headers[0].pop("__metadata__"))[:4] == ["format", "id", "b", "a"]
    assert headers[0] == headers[1]
    assert contents[0] == contents[1]


def test_writing_an_hour_takes_no_copy_of_it(tmp_path):
    features = {"final": torch.ones(60_000, 768)}
    peak = peak_bytes(
        lambda: feature_files.write_features(tmp_path / "a.safetensors", features, {}), torch.device("cpu")
    )
    if peak is None:
        pytest.skip("this system does not tell what memory a call takes")
    assert peak < 0.1 * features["final"].nbytes


def test_the_last_layer_and_final_may_be_one_tensor(encoder, tmp_path):
    (outcome,) = run(encoder, list_recordings(SPEECH).rows[:1], tmp_path, layers=("layer_03", "final"))
    found = load_file(outcome.result.path)
    assert torch.equal(found["layer_03"], found["final"])  # a post-norm model returns what its last block gives


def test_recordings_of_one_name_do_not_meet(encoder, tmp_path):
    tone = np.sin(np.arange(4000, dtype=np.float32) / 9)
    (tmp_path / "in" / "b").mkdir(parents=True)
    for name in ("a.wav", "a.flac", "b/a.wav"):
        soundfile.write(tmp_path / "in" / name, tone, 16_000)
    run(encoder, list_recordings(tmp_path / "in").rows, tmp_path / "out")
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.safetensors"))
    assert found == ["a.flac.safetensors", "a.wav.safetensors", "b/a.wav.safetensors"]


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(encoder, tmp_path):
    good = list_recordings(SPEECH).rows[0].path
    text, short, gone = tmp_path / "text.wav", tmp_path / "short.wav", tmp_path / "gone.wav"
    text.write_text("hello")
    soundfile.write(short, np.zeros(399, np.int16), 16_000)
    outcomes = run(encoder, rows_of(text, good, short, gone), tmp_path / "out")
    assert [outcome.reason is None for outcome in outcomes] == [False, True, False, False]
    ledger = [json.loads(line) for line in (tmp_path / "out" / FAILURE_LOG).read_text().splitlines()]
    assert [entry["path"] for entry in ledger] == [str(text), str(short), str(gone)]
    assert "at least 400" in ledger[1]["reason"]
    assert "No such file" in ledger[2]["reason"]
    run(encoder, rows_of(good), tmp_path / "out")
    assert not (tmp_path / "out" / FAILURE_LOG).exists()  # the ledger is of the last run


def test_a_recording_beyond_the_limit_is_named(encoder, tmp_path):
    (outcome,) = run(encoder, list_recordings(SPEECH).rows[:1], tmp_path, max_duration=0.1)
    assert "max_duration=0.1" in outcome.reason


def test_flags_reach_the_outcome_and_the_file(encoder, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(4000, np.int16), 16_000)
    (outcome,) = run(encoder, rows_of(tmp_path / "silent.wav"), tmp_path / "out")
    assert outcome.flags == ("all zeros",)
    with safe_open(outcome.result.path, "pt") as file:
        assert file.metadata()["flags"] == "all zeros"


def test_features_that_overflow_are_named_and_not_written(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "extract", lambda *_: [{"final": torch.full((3, 2), torch.inf)}])
    (outcome,) = run(encoder, list_recordings(SPEECH).rows[:1], tmp_path / "out")
    assert "not finite in float32" in outcome.reason
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_recording_that_does_not_fit_into_memory_is_named(encoder, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(encoder, "extract", fail)
    (outcome,) = run(encoder, list_recordings(SPEECH).rows[:1], tmp_path / "out")
    assert "does not fit into memory" in outcome.reason


def test_an_interruption_just_after_the_rename_is_not_lost(encoder, tmp_path, monkeypatch):
    right = whole_files.os.replace

    def replace(temporary, path):
        right(temporary, path)
        if path.suffix == feature_files.EXTENSION:
            raise KeyboardInterrupt

    monkeypatch.setattr(whole_files.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        run(encoder, list_recordings(SPEECH).rows[:2], tmp_path / "out")


def test_features_can_be_learned_from(encoder):
    found = encoder.extract([torch.randn(2000)])[0]["final"]
    probe = torch.nn.Linear(found.shape[1], 2)
    probe(found).sum().backward()
    assert probe.weight.grad is not None


def test_an_unknown_layer_is_told_before_anything_is_written(encoder, tmp_path):
    with pytest.raises(ValueError, match="layer_99"):
        run(encoder, list_recordings(SPEECH).rows[:1], tmp_path / "out", layers=("layer_99",))
    assert not (tmp_path / "out").exists()


def test_a_name_too_long_for_the_file_system_concerns_one_recording(encoder, tmp_path):
    good = list_recordings(SPEECH).rows[0].path
    outcomes = run(encoder, [Row("n" * 250, good), Row("fine", good)], tmp_path)
    assert "cannot be written" in outcomes[0].reason
    assert outcomes[1].reason is None


def test_an_output_that_is_a_file_is_told(encoder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write"):
        run(encoder, list_recordings(SPEECH).rows[:1], tmp_path / "file" / "out")


def test_an_interruption_leaves_whole_files_only(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "frame_budget", lambda: 1)
    monkeypatch.setattr(extractor, "WRITERS", 1)
    rows = list_recordings(SPEECH).rows[:3]
    right, written = whole_files.os.replace, []

    def interrupt(temporary, path):
        if path.suffix == feature_files.EXTENSION:
            written.append(path)
            if len(written) > 1:
                raise KeyboardInterrupt
        right(temporary, path)

    monkeypatch.setattr(whole_files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(encoder, rows, tmp_path / "out")
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != RUN]
    assert [p.name for p in files] == [f"{rows[0].path.name}.safetensors"]
    load_file(files[0])
