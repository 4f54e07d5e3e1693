"""A run: whatever the threads do, the same outcomes, the same ledger, nothing lost, and nobody left behind."""

import json
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import SPEECH
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from w2v_attn import load_encoder
from w2v_attn.audio.read_audio import AudioError, Recording
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction import extracting
from w2v_attn.run_error import RunError
from w2v_attn.runs import pipeline, prefetch, row_reader
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.outcomes import write_error
from w2v_attn.runs.pipeline import ONE_BY_ONE, run_corpus
from w2v_attn.runs.prefetch import ReadAhead, batches

HOP = 320


class Ear:
    """A model that hears everything that has a frame."""

    device, sample_rate = torch.device("cpu"), 16_000

    def check_waveform(self, waveform):
        if len(waveform) < HOP:
            raise ValueError("is too short")

    def count_frames(self, samples):
        return samples // HOP


@pytest.fixture(autouse=True)
def nobody_is_left_behind():
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("reader", "writer"))]


@pytest.fixture
def corpus(monkeypatch):
    """Makes rows of so many frames each: 0 is too short, None cannot be read; an exception is raised in the reader."""

    def make(lengths):
        def read_row(row, **_):
            length = lengths[int(row.id)]
            if length is None:
                raise AudioError("is no audio")
            if isinstance(length, BaseException):
                raise length
            return Recording(torch.zeros(length * HOP), 16_000, 16_000, 1, ())

        monkeypatch.setattr(row_reader, "read_row", read_row)
        return [Row(str(number), Path(f"/{number}.wav")) for number in range(len(lengths))]

    return make


def settled(numbers, least):
    """Waits until there are that many, and then for one too many that may still come -> how many there are."""
    deadline = time.monotonic() + 10
    while len(numbers) < least and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    return len(numbers)


def number_of(batch):
    return [int(row.id) for row, _ in batch]


def start(rows, output, process=number_of, finish=lambda row, recording, found: found, **options):
    return run_corpus(rows, output, Ear(), process, finish, **{"max_duration": 60, "budget": 10, **options})


def ledger(output):
    path = output / FAILURE_LOG
    return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Piece:
    number: int
    frames: int


LENGTHS = st.lists(st.integers(0, 25), max_size=60)


@given(LENGTHS, st.integers(1, 40))
def test_batches_have_every_item_once_within_the_budget_or_one_alone(lengths, budget):
    pieces = [Piece(number, frames) for number, frames in enumerate(lengths)]
    made = list(batches(pieces, budget))
    assert sorted(piece.number for batch in made for piece in batch) == list(range(len(pieces)))
    for batch in made:
        assert len(batch) == 1 or sum(piece.frames for piece in batch) <= budget
        assert len(batch) == 1 or all(piece.frames > 0 for piece in batch)
        assert [piece.frames for piece in batch] == sorted((piece.frames for piece in batch), reverse=True)


@given(LENGTHS, st.integers(1, 40))
def test_nothing_waits_longer_than_a_window(lengths, budget):
    """So the share that is done grows as the corpus does, and time left is right."""
    pieces = [Piece(number, frames) for number, frames in enumerate(lengths)]
    behind = 0
    for batch in batches(pieces, budget):
        for piece in batch:
            before = sum(other.frames for other in pieces[: piece.number])
            assert abs(behind - before) <= (prefetch.WINDOW + 1) * budget + 2 * max(lengths)
            behind += piece.frames


def test_one_by_one_keeps_the_order_of_the_rows():
    pieces = [Piece(number, number % 3) for number in range(50)]
    assert list(batches(pieces, ONE_BY_ONE)) == [[piece] for piece in pieces]


def test_a_recording_that_cannot_be_read_changes_no_batch_beyond_its_block(monkeypatch):
    monkeypatch.setattr(prefetch, "ROWS_PER_BLOCK", 20)
    pieces = [Piece(number, 1 + number % 7) for number in range(100)]
    whole = list(batches(pieces, 9))
    for unread in (0, 5, 19, 33):
        broken = list(batches([*pieces[:unread], Piece(unread, 0), *pieces[unread + 1 :]], 9))
        block = unread // 20
        other = [batch for batch in broken if batch not in whole]
        assert other  # it does change those of its block
        assert {piece.number // 20 for batch in other for piece in batch} == {block}


@pytest.mark.parametrize("threads", [1, 3])
def test_items_come_in_the_order_of_their_tasks_and_no_more_are_read_than_may_wait(threads):
    begun = []

    def read(number):
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return Piece(number, 2)

    bounds = {"threads": threads, "max_items": 7, "max_frames": 1000, "stopped": lambda: False}
    with ReadAhead(range(40), read, **bounds) as ahead:
        items = iter(ahead)
        assert next(items).number == 0
        assert settled(begun, 1 + 7) == 1 + 7
        assert [item.number for item in items] == list(range(1, 40))
    begun.clear()
    with ReadAhead(range(40), read, **{**bounds, "max_items": 1000, "max_frames": 10}):
        assert 5 <= settled(begun, 5) <= 5 + threads - 1


@pytest.mark.parametrize("budget", [ONE_BY_ONE, 7, 1000])
def test_every_row_has_one_outcome_and_the_ledger_is_in_their_order(corpus, tmp_path, budget):
    lengths = [3, None, 12, 0, 5, 5, None, 1, 30, 2, 0, 9] * 4
    rows = corpus(lengths)
    failing = {4, 9, 31}

    def finish(row, recording, found):
        time.sleep(0.003 * (found % 3))
        if found in failing:
            raise ValueError("cannot be written")
        return found

    outcomes = list(start(rows, tmp_path, finish=finish, budget=budget, writers=3))
    assert sorted(int(outcome.row.id) for outcome in outcomes) == list(range(len(rows)))
    failed = [row.id for row, length in zip(rows, lengths, strict=True) if not length or int(row.id) in failing]
    assert sorted((o.row.id for o in outcomes if o.reason is not None), key=int) == failed
    assert ledger(tmp_path) == failed
    assert all(o.result == int(o.row.id) for o in outcomes if o.reason is None)
    if budget == ONE_BY_ONE:
        assert [outcome.row for outcome in outcomes] == rows
    again = list(start(rows, tmp_path, finish=finish, budget=budget, writers=2))
    assert again == outcomes


def test_features_are_those_of_one_by_one(group_checkpoint, tmp_path, monkeypatch):
    encoder, rows = load_encoder(group_checkpoint), list_recordings(SPEECH).rows[:6]
    for budget in (1, 150):
        monkeypatch.setattr(encoder, "frame_budget", lambda budget=budget: budget)
        list(extracting.extract_corpus(encoder, rows, tmp_path / str(budget), layers=("all",), max_duration=60))
    for row in rows:
        one, two = (load_file(tmp_path / str(budget) / f"{row.id}.safetensors") for budget in (1, 150))
        assert one.keys() == two.keys()
        for name, alone in one.items():
            torch.testing.assert_close(two[name], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_batch_and_those_that_follow(corpus, tmp_path, caplog, error):
    rows = corpus([4] * 8 + [30] + [1] * 40)
    sizes = []

    def process(batch):
        sizes.append(sum(len(recording.waveform) // HOP for _, recording in batch))
        if sizes[-1] > 9:
            raise error
        return number_of(batch)

    with caplog.at_level(logging.WARNING):
        outcomes = list(start(rows, tmp_path, process=process, budget=32))
    assert {o.row.id: o.reason for o in outcomes if o.reason} == {"8": "does not fit into memory: cut it into pieces"}
    assert all(o.result == int(o.row.id) for o in outcomes if o.reason is None)
    assert sizes[:3] == [32, 16, 8]  # and then never more than 8, but for the one that is alone
    assert [size for size in sizes[3:] if size > 8] in ([16, 30], [30])
    assert len(caplog.records) == 2


def test_a_recording_that_the_model_refuses_is_found_in_its_batch(corpus, tmp_path):
    def process(batch):
        if 5 in number_of(batch):
            raise ValueError("is odd")
        return [ValueError("is even odder") if number == 6 else number for number in number_of(batch)]

    outcomes = list(start(corpus([1] * 8), tmp_path, process=process))
    assert {o.row.id: o.reason for o in outcomes if o.reason} == {"5": "is odd", "6": "is even odder"}


class MistakeError(Exception):
    pass


def fails(*_):
    raise MistakeError


@pytest.mark.parametrize("place", ["reader", "model", "writer"])
def test_a_mistake_of_ours_ends_the_run_with_its_trace(corpus, tmp_path, place):
    rows = corpus([2] * 30 + [MistakeError() if place == "reader" else 2] + [2] * 30)
    wrong = {"model": {"process": fails}, "writer": {"finish": fails}}.get(place, {})
    with pytest.raises(MistakeError) as caught:
        list(start(rows, tmp_path, **wrong))
    assert any(entry.name in ("fails", "read_row") for entry in caught.traceback)


def test_the_end_of_the_disk_in_a_writer_is_the_end_of_the_run(corpus, tmp_path):
    def finish(row, recording, found):
        if found == 7:
            raise write_error(Path("x"), OSError(28, "No space left on device"))
        return found

    with pytest.raises(RunError, match="No space left"):
        list(start(corpus([2] * 40 + [None] * 2), tmp_path, finish=finish, writers=2))


def test_reading_goes_on_while_the_model_is_busy_and_is_bounded(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_WAITING", 20)
    rows, read = corpus([1] * 200), []
    right = row_reader.read_row
    monkeypatch.setattr(row_reader, "read_row", lambda row, **options: read.append(row.id) or right(row, **options))
    seen = []

    def process(batch):
        seen.append(settled(read, 5 + 20))
        return number_of(batch)

    done = start(rows, tmp_path, process=process, budget=5)
    next(done)
    done.close()
    assert seen[0] == 5 + 20


def test_writing_goes_on_while_the_model_is_busy(corpus, tmp_path):
    written = threading.Event()
    batches_seen = []

    def process(batch):
        batches_seen.append(batch)
        if len(batches_seen) == 2:
            assert written.wait(5)
        return number_of(batch)

    list(start(corpus([5] * 10), tmp_path, process=process, finish=lambda *_: written.set()))


def test_an_interruption_finishes_what_is_computed_and_no_more(corpus, tmp_path):
    stop, written = threading.Event(), []

    def process(batch):
        stop.set()
        return number_of(batch)

    def finish(row, recording, found):
        time.sleep(0.01)
        written.append(row)

    rows = corpus([None] + [2] * 100)
    outcomes = list(start(rows, tmp_path, process=process, finish=finish, interrupted=stop.is_set))
    assert [outcome.row for outcome in outcomes[1:]] == written
    assert len(written) == 5
    assert ledger(tmp_path) == ["0"]


def test_an_interruption_does_not_wait_for_a_recording_that_does_not_come(corpus, tmp_path, monkeypatch):
    rows, come, stop = corpus([2] * 3), threading.Event(), threading.Event()
    right = row_reader.read_row
    monkeypatch.setattr(row_reader, "read_row", lambda row, **options: come.wait(5) and right(row, **options))
    asked = []

    def interrupted():
        asked.append(time.monotonic())
        if len(asked) > 3:
            come.set() if stop.is_set() else stop.set()
        return stop.is_set()

    assert list(start(rows, tmp_path, interrupted=interrupted)) == []


def test_closed_early_it_drops_what_nobody_has_begun_to_write(corpus, tmp_path):
    written = []

    def finish(row, recording, found):
        time.sleep(0.02)
        written.append(row)

    done = start(corpus([1] * 500), tmp_path, finish=finish, budget=100)
    next(done)
    began = time.monotonic()
    done.close()
    assert time.monotonic() - began < 1
    count = len(written)
    time.sleep(0.1)
    assert len(written) == count < 300


def test_a_killed_run_has_named_what_it_knew(corpus, tmp_path):
    done = start(corpus([2, 2, None, None] + [2] * 50), tmp_path, budget=4)
    next(done)
    next(done)
    next(done)
    assert ledger(tmp_path) == ["2", "3"] or ledger(tmp_path) == ["2"]
    done.close()
