"""What a run will take, said before it starts: right, from a few headers, and without a trace."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SPEECH, TINY, save, tiny_bert, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from w2v_attn import load_encoder
from w2v_attn.audio import decoder_subprocess
from w2v_attn.audio.audio_decoder import INLINE
from w2v_attn.audio.samples import read_duration
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction import estimate as estimating
from w2v_attn.extraction import scan
from w2v_attn.extraction.computing import compute_features
from w2v_attn.extraction.estimate import estimate
from w2v_attn.extraction.extracting import extract_corpus
from w2v_attn.extraction.feature_spec import FeatureSpec
from w2v_attn.extraction.store import store_of
from w2v_attn.features.pooling import Span
from w2v_attn.features.transform import FeatureTransform
from w2v_attn.runs import row_reader

CLIPS = list_recordings(SPEECH).rows


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TINY, device="cpu")


# What is tried of a run decides about its time alone.
LITTLE = estimating.TrialRun(0.0, 0.1, 0.1)


def ahead(encoder, rows, output, *, layers=("final",), max_duration=60, layout="mirrored", transform=None):
    product, limits = FeatureSpec(encoder, layers, transform), {"max_duration": max_duration, "audio_decoder": INLINE}
    return estimate(encoder, product, store_of(layout), rows, output, trial=LITTLE, **limits)


def extract(encoder, rows, output, *, layers=("final",), **options):
    return list(extract_corpus(encoder, rows, output, layers=layers, max_duration=60, **options))


def duration_of(row):
    return row_reader.row_duration(row, read_duration)


def sizes(output):
    return [path.stat().st_size for path in output.rglob("*.safetensors")]


def noise(path, seconds, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).standard_normal(int(seconds * rate)) / 10, rate)
    return path


@pytest.mark.parametrize("family", ["wav2vec2-group", "sew", "conformer-relative", "bert"])
@pytest.mark.parametrize(("layers", "dtype"), [(("final",), "float32"), (("embed", "layer_01", "final"), "bfloat16")])
def test_bytes_and_files_are_those_that_come_out(family, layers, dtype, tmp_path):
    if family == "bert":
        model = tiny_bert()
        model.save_pretrained(tmp_path / "model")
        from transformers import SeamlessM4TFeatureExtractor

        SeamlessM4TFeatureExtractor().save_pretrained(tmp_path / "model")
    else:
        save(tiny_model(family), tmp_path / "model")
    encoder = load_encoder(tmp_path / "model", dtype=dtype, device="cpu")
    rows = CLIPS[:6]
    found = ahead(encoder, rows, tmp_path / "out", layers=layers)
    assert not (tmp_path / "out").exists()
    outcomes = extract(encoder, rows, tmp_path / "out", layers=layers)
    assert found.files == len(sizes(tmp_path / "out")) == len(rows)
    assert found.bytes == pytest.approx(sum(sizes(tmp_path / "out")), rel=0.02)
    assert found.audio == found.missing == pytest.approx(sum(outcome.seconds for outcome in outcomes), rel=1e-3)
    assert found.spread == 0  # every header was read


@pytest.mark.parametrize("rates", [(16_000, 16_000), (16_000, 44_100)])
def test_some_headers_speak_for_all_and_say_how_far_off_they_may_be(encoder, tmp_path, monkeypatch, rates):
    """What is long comes last, as WAV, and what is short is compressed; a mean is further off, where bytes say more."""
    monkeypatch.setattr(scan, "MAX_SAMPLED", 40)
    originals = [noise(tmp_path / "a" / f"{n}.wav", 1 + n % 7, rate=rates[n % 2]) for n in range(14)]
    originals += [noise(tmp_path / "b" / f"{n}.flac", 0.3 + n % 3 / 10) for n in range(9)]
    rows = []
    for number in range(400):
        source = originals[number % 14] if number >= 300 else originals[14 + number % 9]
        path = tmp_path / "in" / f"{number:03d}{source.suffix}"
        path.parent.mkdir(exist_ok=True)
        os.link(source, path)
        rows.append(Row(path.name, path))
    true = sum(duration_of(row) or 0 for row in rows)
    found = ahead(encoder, rows, tmp_path / "out")
    assert found.looked_at == 40
    assert 0 < found.spread < 0.3
    assert abs(found.audio / true - 1) < 1.5 * found.spread
    if len(set(rates)) == 1:
        by_mean = 400 * np.mean(
            [
                looked.duration
                for looked in scan.scan_rows(
                    rows, store_of("mirrored").open_index(tmp_path / "out"), INLINE.start()
                ).sample
            ]
        )
        assert abs(found.audio / true - 1) < min(0.01, abs(by_mean / true - 1) / 3)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["mirrored", "shards"])
@pytest.mark.parametrize(
    "making", [{}, {"layer_weights": "mean", "output_dtype": "float16"}, {"pooling": "statistics"}], ids=str
)
def test_bytes_are_those_of_what_is_made_in_every_layout(layout, making, encoder, tmp_path):
    rows = [Row(f"{n}/{row.id}", row.path) for n in range(6) for row in CLIPS]
    options = {"layers": ("layer_01", "final"), "layout": layout, "transform": FeatureTransform(**making)}
    found = ahead(encoder, rows, tmp_path / "out", **options)
    extract(encoder, rows, tmp_path / "out", **options)
    files = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".safetensors", ".sqlite")]
    assert found.files == len(files)
    # An index of SQLite's has pages that are not full.
    assert found.bytes == pytest.approx(
        sum(path.stat().st_size for path in files), rel=0.02 if layout == "mirrored" else 0.1
    )
    assert ahead(encoder, rows, tmp_path / "out", **options).there == len(rows)


def test_spans_are_counted_and_not_asked_of_a_rehearsal(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(estimating, "TRIAL_THRESHOLD", 0.0)
    spans = {row.id: [Span(0.0, 0.1), Span(0.1, 0.2, "b"), Span(0.2, 0.3)] for row in CLIPS}
    making = FeatureTransform(pooling="mean", spans=spans)
    found = ahead(encoder, CLIPS, tmp_path / "out", transform=making)
    extract(encoder, CLIPS, tmp_path / "out", transform=making)
    assert found.files == len(CLIPS)
    assert found.bytes == pytest.approx(sum(sizes(tmp_path / "out")), rel=0.02)
    assert 0 < found.seconds < 5


def test_recordings_in_parquet_are_estimated_as_those_in_files(encoder, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, row in enumerate(CLIPS):
        noise(tmp_path / f"{number}.wav", duration_of(row))
    cells = [{"bytes": (tmp_path / f"{number}.wav").read_bytes(), "path": None} for number in range(len(CLIPS))]
    parquet.write_table(pyarrow.table({"audio": cells}), tmp_path / "corpus.parquet", row_group_size=10)
    rows = list_recordings(tmp_path / "corpus.parquet").rows
    found = ahead(encoder, rows, tmp_path / "out")
    assert found.audio == pytest.approx(sum(map(duration_of, CLIPS)), rel=0.01)
    assert found.weight == pytest.approx(sum(map(row_reader.row_weight, rows)))
    assert found.weight > 1e6


def test_parts_of_a_recording_need_no_header(encoder, tmp_path):
    rows = [Row(f"{n}", tmp_path / "absent.wav", offset=float(n), duration=0.5 + n % 2) for n in range(7)]
    found = ahead(encoder, rows, tmp_path / "out")
    assert found.audio == pytest.approx(sum(row.duration for row in rows))
    assert found.files == 7


def test_what_is_there_and_counts_is_not_computed_again(encoder, tmp_path):
    audio = tmp_path / "in"
    for number, row in enumerate(CLIPS[:8]):
        audio.mkdir(exist_ok=True)
        shutil.copy(row.path, audio / f"{number}.flac")
    rows = list_recordings(audio).rows
    extract(encoder, rows[:5], tmp_path / "out")
    seconds = [duration_of(row) for row in rows]
    found = ahead(encoder, rows, tmp_path / "out")
    assert (found.there, found.files) == (5, 3)
    assert found.missing == pytest.approx(sum(seconds[5:]), rel=0.1)
    for row in rows[:5]:
        os.utime(row.path, (1, 1))  # another date is another recording
    found = ahead(encoder, rows, tmp_path / "out")
    assert (found.there, found.files) == (0, 8)
    assert found.missing == pytest.approx(found.audio)


def test_what_cannot_be_used_is_not_counted(encoder, tmp_path):
    (tmp_path / "text.wav").write_text("no audio" * 1000)
    paths = [tmp_path / "text.wav", noise(tmp_path / "short.wav", 0.02), noise(tmp_path / "long.wav", 9)]
    rows = [*(Row(path.name, path) for path in paths), *CLIPS[:3], Row("gone", Path("/absent.wav"))]
    found = ahead(encoder, rows, tmp_path / "out", max_duration=8)
    assert (found.unusable, found.files) == (4, 3)
    assert found.audio == pytest.approx(sum(duration_of(row) for row in CLIPS[:3]))
    assert ahead(encoder, rows[:2], tmp_path / "out").files == 0


def test_where_all_is_there_but_what_cannot_be_used_nothing_is_to_be_written(encoder, tmp_path):
    (tmp_path / "none.wav").write_text("no audio")
    rows = [*CLIPS[:9], Row("none.wav", tmp_path / "none.wav")]
    extract(encoder, rows, tmp_path / "out")
    found = ahead(encoder, rows, tmp_path / "out")
    assert (found.there, found.unusable, found.files, found.bytes) == (9, 1, 0, 0)


def test_time_is_rehearsed_and_not_believed(encoder, tmp_path, monkeypatch):
    """Operations that are expected to take ten times longer change nothing, where there is enough of them to try."""
    monkeypatch.setattr(estimating, "TRIAL_THRESHOLD", 0.0)
    asked = []
    monkeypatch.setattr(estimating, "compute_features", lambda *a: asked.append(1) or compute_features(*a))
    right = encoder.expected_seconds
    for factor in (1, 10):
        asked.clear()
        monkeypatch.setattr(encoder, "expected_seconds", lambda *a, f=factor: f * right(*a))
        found = ahead(encoder, CLIPS, tmp_path / "out")
        assert len(asked) > 1
        assert found.seconds < 5  # it is a second's work
    assert not (tmp_path / "out").exists()


@given(st.integers(1, 300), st.integers(1, 40))
def test_a_sample_has_a_row_of_each_part_of_the_list(count, first):
    rows = list(scan.evenly(range(count), first))
    assert sorted(rows) == list(range(count))
    assert rows == list(scan.evenly(range(count), first))
    seen = sorted(rows[:first])
    for part, row in enumerate(seen):
        assert part * count // len(seen) <= row < (part + 1) * count // len(seen)


@pytest.mark.parametrize("period", [2, 3, 4, 7, 8, 10, 16])
def test_a_sample_does_not_fall_into_step_with_the_list(period):
    """As every second of a list of pairs does."""
    seen = list(scan.evenly(range(4096), 256))[:256]
    counts = np.bincount([row % period for row in seen], minlength=period)
    assert counts.min() > 0.3 * 256 / period


def test_what_takes_a_moment_is_done_and_not_estimated(call, tmp_path):
    code, out, _ = call("extract", "output=out")
    assert code == 0
    assert "Estimated" not in out
    assert "estimate" not in json.loads((tmp_path / "out" / "run.json").read_text())
    rows = [Row(str(number), CLIPS[0].path) for number in range(100)]
    assert not estimating.is_worth_estimating(rows[:99])
    assert estimating.is_worth_estimating(rows)
    assert estimating.is_worth_estimating([Row("hour", CLIPS[0].path, duration=3600)])


def test_a_rank_without_rows_is_done_at_once(call):
    assert call("extract", "dry_run=true", "rank=1", "world_size=2", "output=out")[0] == 0  # all 36 are one block
    for rank in range(2):
        code, out, err = call("extract", f"rank={rank}", "world_size=2", "output=out")
        assert (code, err) == (0, "")
    assert "2 of 2" in out


def test_dry_run_shows_the_estimate_and_writes_nothing(call, tmp_path):
    code, out, err = call("extract", "dry_run=true", "output=out")
    assert (code, err) == (0, "")
    assert "Estimated" in out
    assert "36 files, 1.1 MB: final in float32" in out
    assert "Extracted" not in out
    assert not list(tmp_path.iterdir())
    assert call("extract", "output=out")[0] == 0
    code, out, _ = call("extract", "dry_run=true", "output=out")
    assert "about 36" in out
    code, _, err = call("extract", "dry_run=true", "output=out", "layers=[layer_01]")
    assert code == 2
    assert "layers: was final, now layer_01" in err


@pytest.mark.parametrize("dry", ["true", "false"])
def test_decoders_that_do_not_start_end_it_in_a_line(dry, call, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_subprocess, "BOOTSTRAP", "raise SystemExit(3)")
    code, _, err = call("extract", f"dry_run={dry}", "output=out")
    assert code == 1
    assert err.startswith("stopped: the subprocesses that decode recordings do not start (exit code 3)")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_disk_with_too_little_room_is_told_and_the_work_begins(call, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    right = os.statvfs
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1_000_000))
    monkeypatch.setattr(os, "statvfs", lambda path: _few_files(right(path)))
    monkeypatch.setattr(estimating, "ROWS_THRESHOLD", 30)
    code, _, err = call("extract", "output=out")
    assert code == 0
    assert "the features will take about 1.2 MB, and the disk of the output has 1.0 MB free" in err
    assert "about 36 files will be written, and the disk of the output has room for 3." in err


def _few_files(found):
    values = list(found)
    values[7] = 3  # f_favail
    return os.statvfs_result(values)
