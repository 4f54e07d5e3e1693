"""Splits are disjoint, and the same for the same seed."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_attn.corpus.rows import CorpusError, Row
from w2v_attn.corpus.splits import Splits, make_splits
from w2v_attn.training.preflight import DataScan, check_overlap
from w2v_attn.training.resume import check_fingerprint
from w2v_attn.training.training_errors import DataError


def rows(count, speakers=5, **fields):
    return [Row(f"{n}", Path(f"{n}.wav"), speaker=f"s{n % speakers}", **fields) for n in range(count)]


def ids(part):
    return {row.id for row in part}


@given(
    count=st.integers(10, 200),
    valid=st.floats(0.01, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 99),
    by=st.sampled_from(["recording", "speaker"]),
)
def test_splits_share_nothing_and_lose_nothing_whatever_the_order(count, valid, test, seed, by):
    all_rows = rows(count)
    first = make_splits(all_rows, None, None, valid_share=valid, test_share=test, by=by, seed=seed)
    parts = [ids(first.train), ids(first.valid), ids(first.test)]
    assert set.union(*parts) == ids(all_rows)
    assert sum(len(part) for part in parts) == count
    again = make_splits(all_rows[::-1], None, None, valid_share=valid, test_share=test, by=by, seed=seed)
    assert [ids(again.train), ids(again.valid), ids(again.test)] == parts
    if by == "speaker":
        speakers = [{row.speaker for row in part} for part in (first.train, first.valid, first.test)]
        assert not (speakers[0] & speakers[1] | speakers[0] & speakers[2] | speakers[1] & speakers[2])


def test_what_is_given_stays():
    train, valid = rows(20), [Row("v", Path("v.wav"))]
    found = make_splits(train, valid, None)
    assert ids(found.valid) == {"v"}
    assert ids(found.train) == ids(train)


def test_the_rows_own_split_decides():
    mixed = [Row("a", Path("a"), split="train"), Row("b", Path("b"), split="valid"), Row("c", Path("c"), split="test")]
    found = make_splits([*mixed, Row("d", Path("d"))], None, None)
    assert (ids(found.train), ids(found.valid), ids(found.test)) == ({"a", "d"}, {"b"}, {"c"})


def test_speakers_of_the_test_are_heard_nowhere_else():
    found = make_splits(rows(50), None, None, test_speakers=["s3"], test_share=0.1)
    assert not {row.speaker for row in (*found.train, *found.valid)} & {"s3"}
    assert len([row for row in found.test if row.speaker == "s3"]) == 10
    assert len(found.test) > 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"by": "moon"}, "recording or speaker"),
        ({"valid_share": 1.5}, "shares of all"),
        ({"valid_share": 0.6, "test_share": 0.5}, "shares of all"),
        ({"test_speakers": ["s9"]}, "no speaker s9; speakers are s0, s1"),
        ({"valid_share": 0.0}, "nothing to validate on"),
        ({"test_speakers": ["s0", "s1", "s2", "s3", "s4"]}, "nothing is left to train on"),
    ],
)
def test_impossible_splits_are_an_error(options, says):
    with pytest.raises(CorpusError, match=says):
        make_splits(rows(20), None, None, **options)


def test_a_split_by_speaker_needs_speakers():
    with pytest.raises(CorpusError, match="x has none"):
        make_splits([*rows(9), Row("x", Path("x"))], None, None, by="speaker")


def test_two_channels_of_a_recording_may_be_in_two_splits_but_not_one_channel():
    left, right = (Row(side, Path("a.wav"), channel=side) for side in ("left", "right"))
    check_overlap(Splits((left,), (right,), ()))
    with pytest.raises(DataError, match="left is in the train split and in the test split"):
        check_overlap(Splits((left,), (right,), (left,)))


def test_the_data_of_a_run_are_other_data_where_the_channel_is_another(tmp_path):
    class Letters:
        symbols = staticmethod(lambda: ["a"])
        reference = staticmethod(lambda row: row.text)

    def fingerprint(channel):
        row = Row("a", Path("a.wav"), text="a", channel=channel)
        found = DataScan(Splits((row,), (), ()), {"train a": 1.0}, ())
        check_fingerprint(tmp_path, found, Letters(), "float32")
        return json.loads((tmp_path / "fingerprint.json").read_text())["data to train on"]

    assert len({fingerprint(channel) for channel in (None, "left", "right")}) == 3
    assert fingerprint(None) == hashlib.sha256(b'[["a", "a", 1.0]]').hexdigest()[:16]
