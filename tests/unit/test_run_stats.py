"""How a run is seen: its speed and time left, what failed and why, and memory that does not grow with it."""

import json
import tracemalloc
from functools import partial
from pathlib import Path

import many
import pytest
import torch
from started import Started

from w2v_attn.cli import console, corpus_run, progress
from w2v_attn.corpus.rows import Corpus, Row
from w2v_attn.extraction.feature_spec import FeatureLocation
from w2v_attn.runs import output_folder, pipeline
from w2v_attn.runs.outcomes import CachedResult, Outcome, kind_of
from w2v_attn.runs.pipeline import run_corpus
from w2v_attn.runs.rank import blocks_of
from w2v_attn.runs.record import RUN
from w2v_attn.runs.run_stats import MAX_LISTED, RunStats, Throughput

ROW = Row("a", Path("/a"))


class Clock:
    """Seconds, as they are told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def computed(seconds=2.0):
    return Outcome(ROW, object(), None, seconds)


def kept(seconds=2.0):
    return Outcome(ROW, object(), None, seconds, cached=True)


def failed(reason="is empty (0 bytes)"):
    return Outcome(ROW, None, reason)


def burst(pace, clock, outcomes, wait):
    """A batch of outcomes after some seconds of computing, a millisecond each."""
    clock.now += wait
    for outcome in outcomes:
        pace.add(outcome, 0.0 if outcome.cached else 1.0)
        clock.now += 0.001


def test_what_is_kept_is_no_work_that_is_left_where_nobody_counted_it_before(clock):
    pace = Throughput(100, now=clock)
    for _ in range(90):
        clock.now += 0.0005
        pace.add(kept(), 1.0)
    assert pace.done == 0
    burst(pace, clock, [computed()] * 5, wait=10)
    burst(pace, clock, [computed()] * 5, wait=10)
    assert pace.done == 1
    assert pace.left == 0
    everything = Throughput(0.3, now=clock)
    for _ in range(3):
        everything.add(kept(), 0.1)
    assert everything.done == 1


def test_time_left_is_that_of_what_is_computed_however_fast_the_others_went_by(clock):
    pace = Throughput(10_000, now=clock)
    for _ in range(90_000):
        clock.now += 0.0005
        pace.add(kept(), 0.0)
    assert pace.left is None  # nobody knows yet
    assert pace.done == 0
    for _ in range(20):
        burst(pace, clock, [computed()] * 10, wait=5)
    assert pace.recordings_per_second == pytest.approx(2, rel=0.02)
    assert pace.times_real_time == pytest.approx(4, rel=0.02)
    assert pace.left == pytest.approx((10_000 - 200) / 2, rel=0.02)
    assert pace.done == pytest.approx(200 / 10_000)


def test_what_fails_at_once_makes_no_run_look_fast(clock):
    pace = Throughput(1000, now=clock)
    for _ in range(30):
        burst(pace, clock, [failed()] * 10 + [computed()] * 10, wait=5)
    assert pace.recordings_per_second == pytest.approx(2, rel=0.05)
    assert pace.left == pytest.approx((1000 - 600) / 2, rel=0.05)


def test_a_batch_of_kept_ones_that_comes_late_does_not_hide_the_time_of_the_batch_before(clock):
    pace = Throughput(1000, now=clock)
    for _ in range(30):
        burst(pace, clock, [kept()] * 10 + [computed()] * 10, wait=5)
    assert pace.recordings_per_second == pytest.approx(2, rel=0.05)


def test_a_speed_is_that_of_the_last_minutes(clock):
    pace = Throughput(100_000, now=clock)
    for _ in range(100):
        burst(pace, clock, [computed()] * 10, wait=10)
    for _ in range(100):
        burst(pace, clock, [computed()] * 10, wait=100)
    assert pace.recordings_per_second == pytest.approx(0.1, rel=0.02)


def test_one_burst_is_not_taken_for_its_first_recording(clock):
    """A speed that is told in the middle of a batch's outcomes is that of the batches before it."""
    pace = Throughput(1000, now=clock)
    for _ in range(3):
        burst(pace, clock, [computed()] * 50, wait=5)
    burst(pace, clock, [computed()], wait=5)
    assert pace.recordings_per_second == pytest.approx(10, rel=0.03)


def test_more_than_there_was_to_do_ends_at_nothing_left(clock):
    pace = Throughput(5, now=clock)
    for _ in range(4):
        burst(pace, clock, [computed()] * 3, wait=1)
    assert (pace.done, pace.left) == (1.0, 0.0)
    assert Throughput(0, now=clock).done == 1.0


def test_reasons_that_differ_in_their_numbers_are_of_one_kind():
    kinds = {
        "is cut short: its header promises 4,352 bytes, the file has 1000": (
            "is cut short: its header promises … bytes, the file has …"
        ),
        "is too short: 12 samples at 16000 Hz, at least 400 are needed": (
            "is too short: … samples at … Hz, at least … are needed"
        ),
        "overflows when it is resampled: its samples reach 3.4e+38 × full scale": (
            "overflows when it is resampled: its samples reach … × full scale"
        ),
        "is longer than max_duration=7200 seconds: raise it": "is longer than max_duration=… seconds: raise it",
        "cannot be read: No such file or directory": "cannot be read: No such file or directory",
    }
    assert {reason: kind_of(reason) for reason in kinds} == kinds


def test_a_tally_has_every_count_and_an_example_of_each_kind():
    tally = RunStats()
    for number in range(3 * MAX_LISTED):
        tally.add(Outcome(Row(f"{number}", Path("/a")), None, f"is cut short: {number} bytes"))
    tally.add(Outcome(Row("last", Path("/a")), None, "is empty"))
    tally.add(Outcome(ROW, 1, None, 2.0, ("louder than full scale (3 ×)",)))
    tally.add(Outcome(ROW, 1, None, 4.0, ("louder than full scale (9 ×)",), cached=True))
    assert (tally.reached, tally.written, tally.cached, tally.failed) == (3 * MAX_LISTED + 3, 1, 1, 3 * MAX_LISTED + 1)
    assert tally.seconds == 2.0
    assert tally.flags == {"louder than full scale": 2}
    assert tally.kinds == {"is cut short: … bytes": 3 * MAX_LISTED, "is empty": 1}
    assert tally.examples["is cut short: … bytes"] == ("0", "is cut short: 0 bytes")
    assert len(tally.first_failures) == MAX_LISTED


def test_a_tally_counts_values_that_became_0_of_results_that_are_new_and_kept():
    tally = RunStats()
    for number, result in enumerate(
        [FeatureLocation(Path("/a"), 7, 3, 5), FeatureLocation(Path("/a"), 7, 3), object()]
    ):
        tally.add(Outcome(ROW, result, None, 1.0, cached=number == 0))
    tally.add(Outcome(ROW, None, "is empty"))
    tally.add(Outcome(ROW, FeatureLocation(Path("/a"), 7, 3, 2), None))
    assert (tally.underflowed, tally.underflowed_rows) == (7, 2)


def test_many_failures_are_shown_by_their_reasons_and_few_one_by_one(capsys):
    tally = RunStats()
    for number in range(MAX_LISTED):
        tally.add(Outcome(Row(f"row-{number}", Path("/a")), None, f"is cut short: {number} bytes"))
    corpus_run._show_kinds("Could not be used", tally)
    out = capsys.readouterr().out
    assert all(f"row-{number}" in out for number in range(MAX_LISTED))
    tally.add(Outcome(Row("odd", Path("/a")), None, "is empty (0 bytes)"))
    corpus_run._show_kinds("Could not be used", tally)
    out = capsys.readouterr().out
    assert "Could not be used: 21" in out
    for expected in ("20 ×", "is cut short: … bytes", "row-0", "1 ×", "is empty (0 bytes)", "odd"):
        assert expected in out
    assert "row-1" not in out


def test_a_log_of_two_days_has_some_hundred_lines_and_the_first_ones_soon(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    pace, tally = Throughput(1e9, now=clock), RunStats()
    shown = progress.RunProgress(10**6, pace, tally)
    lines = {}
    while clock.now < 2 * 24 * 3600:
        clock.now += 2
        outcome = computed()
        tally.add(outcome)
        pace.add(outcome, 1.0)
        shown.update()
        if said := capsys.readouterr().err:
            lines[clock.now] = said
    assert len(lines) < 500
    assert sum(at < 60 for at in lines) == 5
    last = list(lines.values())[-1]
    assert "of 1,000,000, 0.5/s, 1.0 × real time" in last
    assert last[:2] == "20"  # it begins with the date


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (45, "45 s"), (700, "12 min"), (11_100, "3 h 05 min"), (187_200, "2 d 04 h")],
)
def test_spans_are_told_in_two_units_at_most(seconds, said):
    assert console.span(seconds) == said


def test_run_json_says_how_far_a_run_is_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "RECORD_SECONDS", 0.0)
    rows = [ROW, Row("b", Path("/b")), Row("c", Path("/c"))]
    claim = output_folder.RunSpec(
        blocks=blocks_of(rows), fingerprint={}, made_with={}, batch_frames=1, about={}, prepare=lambda: None
    )
    with output_folder.acquire(tmp_path, claim) as held:
        for outcome in (computed(), failed("is cut short: 3 bytes")):
            held.count(outcome)
        found = json.loads((tmp_path / RUN).read_text())
    assert found["status"] == "running"
    assert found["counts"] == {"recordings": 3, "written": 1, "kept": 0, "failed": 1, "not_reached": 1}
    assert found["failures"] == {"is cut short: … bytes": 1}
    assert found["session"]["audio_seconds"] == 2.0


class Ear:
    """A model that is never asked."""

    device, sample_rate = torch.device("cpu"), 16_000

    def count_frames(self, samples):
        return samples // 320


def test_memory_does_not_grow_with_the_rows_of_a_run(tmp_path, monkeypatch):
    """Neither with those that are there nor with those that fail, beyond the lines of these."""

    def peak(count):
        path = Path("/absent.wav")  # one for all, for each keeps its text
        rows = tuple(Row(f"{number:06d}", path) for number in range(count))
        there = CachedResult(object(), 16_000, 16_000, ())
        settled = lambda row: there if int(row.id) % 500 else None  # noqa: E731
        options = {"max_duration": 60, "budget": 1000, "find_cached": settled}
        start = partial(run_corpus, rows, tmp_path / str(count), Ear(), None, None, **options)
        tracemalloc.start()
        try:
            tally, _, _ = corpus_run.watch(Corpus(rows), start, lambda row, result: None)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert (tally.reached, tally.failed) == (count, count // 500)

    monkeypatch.setattr(pipeline, "MAX_WAITING", 100)
    few, many = 2_000, 12_000
    assert (peak(many) - peak(few)) / (many - few) < 15  # bytes; a list of outcomes takes 150


@pytest.mark.slow
def test_what_very_many_recordings_cost_can_be_measured(tmp_path):
    run = Started(["--recordings", "200"], tmp_path / "said", main=many.main)
    assert run.end(100) == 0, run.said()
    assert set(json.loads(run.said())) == {"20", "200", "bytes_a_row"}
