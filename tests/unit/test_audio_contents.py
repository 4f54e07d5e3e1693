"""What recordings contain: flags for useless samples, the choice of a channel, and the kinds of failures."""

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_attn import read_audio
from w2v_attn.audio.audio_decoder import AudioDecoderOptions
from w2v_attn.audio.read_audio import AudioError, read_recording
from w2v_attn.audio.signal_checks import SignalChecks
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import FAILURE_KINDS
from w2v_attn.runs.row_reader import read_row, select_channel, source_state

RATE = 16_000


@pytest.fixture(scope="module")
def speech():
    """Three seconds of speech, float32 [samples], normalised to full scale."""
    parts = [soundfile.read(path, dtype="float32")[0] for path in sorted(SPEECH.rglob("*.flac"))[:6]]
    wave = np.concatenate(parts)[: 3 * RATE]
    return wave / np.abs(wave).max() * (1 - 2**-15)


def flags(samples, path, subtype="PCM_16", rate=RATE, **reading):
    soundfile.write(path, samples, rate, format="WAV", subtype=subtype)
    return [flag.split(" (")[0] for flag in read_recording(path, **reading).flags]


# ---------------------------------------------------------------------------------------------------- flags


def test_channels_that_cancel_are_flagged_and_either_of_them_is_not(speech, tmp_path):
    opposite = np.stack([speech, -speech], 1)
    assert flags(opposite, tmp_path / "a", "FLOAT") == ["all zeros", "channels that cancel"]
    for channel in ("left", "right", 0, 1):
        assert flags(opposite, tmp_path / "a", channel=channel) == []
    noisy = opposite + np.random.default_rng(0).normal(0, 0.01, opposite.shape)
    assert flags(0.5 * noisy, tmp_path / "a") == ["channels that cancel"]
    # By hand: the mean of x and -0.9 x is 0.05 x, which is 26 dB quieter than x.
    soundfile.write(tmp_path / "a", np.stack([speech, -0.9 * speech], 1), RATE, format="WAV", subtype="FLOAT")
    assert read_recording(tmp_path / "a").flags == ("channels that cancel (their mean is 26 dB quieter)",)


def test_channels_of_several_microphones_or_speakers_do_not_cancel(speech, tmp_path):
    half = speech[: len(speech) // 2]
    others = {
        "two speakers": np.stack([half, speech[len(half) : 2 * len(half)]], 1),
        "a delay": np.stack([half[40:], half[:-40]], 1),
        "one silent": np.stack([half, 0 * half], 1),
        "one of eight": half[:, None] * np.eye(8, dtype=np.float32)[0],
        "inverse and quieter": np.stack([half, -0.3 * half], 1),
        "independent": 0.1 * np.random.default_rng(0).standard_normal((20_000, 8)),
    }
    assert {name: flags(0.9 * wave, tmp_path / "a") for name, wave in others.items()} == {name: [] for name in others}


@pytest.mark.parametrize("gain", [3, 10, 100])
@pytest.mark.parametrize(("subtype", "form"), [("PCM_16", "WAV"), ("PCM_U8", "WAV"), ("ULAW", "WAV"), ("FLOAT", "WAV")])
def test_clipped_speech_is_flagged_in_any_coding_and_at_any_level(gain, subtype, form, speech, tmp_path):
    clipped = np.clip(gain * speech, -1, 1)
    assert flags(clipped, tmp_path / "a", subtype) == ["clipped"]
    assert flags(0.5 * clipped, tmp_path / "a", subtype) == ["clipped"]  # and made quieter later


@pytest.mark.parametrize("form", [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_clipped_speech_is_flagged_behind_a_codec_with_loss(form, speech, tmp_path):
    soundfile.write(tmp_path / "a", np.clip(6 * speech, -1, 1), RATE, format=form[0], subtype=form[1])
    assert [flag.split(" (")[0] for flag in read_recording(tmp_path / "a").flags] == ["clipped"]


def test_one_clipped_channel_is_flagged_though_the_mean_is_not_flat(speech, tmp_path):
    other = np.random.default_rng(0).normal(0, 0.1, len(speech))
    assert flags(np.stack([np.clip(9 * speech, -1, 1), other], 1), tmp_path / "a") == ["clipped"]


def test_clipping_is_counted_in_samples():
    """By hand: two runs of 3 and 4 samples at the highest value, one of 5 at the lowest; runs of 2 are peaks."""
    checks = SignalChecks()
    pattern = [0, 0.5, 0.5, 0.5, 0, 0.5, 0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.2, *[-0.6] * 5, 0.3, -0.6]
    wave = np.array(pattern, np.float32)
    checks.include(wave[:, None], wave)
    assert list(checks.warnings()) == ["clipped (60.0% of the samples)"]


def test_an_offset_is_flagged(speech, tmp_path):
    assert flags(0.1 * speech + 0.2, tmp_path / "a") == ["offset"]
    assert flags(0.1 * speech - 0.05, tmp_path / "a") == ["offset"]
    assert flags(0.1 * speech + 0.004, tmp_path / "a") == []  # what a cheap microphone adds


def test_near_silence_is_flagged_and_quiet_speech_is_not(speech, tmp_path):
    hiss = np.random.default_rng(0).integers(-2, 3, RATE) / 2**15
    assert flags(hiss, tmp_path / "a") == ["almost silent"]
    assert flags(0.003 * speech, tmp_path / "a", "PCM_24") == []


def test_normal_speech_is_not_flagged_at_any_length_or_level(speech, tmp_path):
    loudest = int(np.abs(speech).argmax())
    for samples in (1009, 8000, len(speech)):
        for level in (1, 0.5, 0.02):
            assert flags(level * speech[max(0, loudest - samples // 2) :][:samples], tmp_path / "a") == []
    for path in sorted(SPEECH.rglob("*.flac")):
        assert read_recording(path).flags == ()


@given(cuts=st.lists(st.integers(1, 7999), max_size=4), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_flags_do_not_depend_on_the_blocks_that_a_file_is_read_in(cuts, seed):
    rng = np.random.default_rng(seed)
    wave = np.clip(rng.normal(0.3, 0.5, (8000, 2)), -1, 1).astype(np.float32)
    found = []
    for edges in ([0, 8000], sorted({0, *cuts, 8000})):
        checks = SignalChecks()
        for start, end in pairwise(edges):
            checks.include(wave[start:end], wave[start:end].mean(1))
        found.append([flag.split(" (")[0] for flag in checks.warnings()])
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------------- channels


def test_a_channel_is_that_channel_and_the_mean_is_the_default(speech, tmp_path):
    quarters = speech[: 4 * (len(speech) // 4)].reshape(4, -1).T
    soundfile.write(tmp_path / "a", quarters, RATE, format="WAV", subtype="FLOAT")
    for channel, number in (("left", 0), ("right", 1), (0, 0), (3, 3), ("2", 2)):
        found = read_recording(tmp_path / "a", channel=channel)
        np.testing.assert_array_equal(found.waveform, quarters[:, number])
        assert (found.channel, found.source_channels) == (number, 4)
    np.testing.assert_allclose(read_audio(tmp_path / "a"), quarters.mean(1), atol=1e-7)
    np.testing.assert_allclose(read_audio(tmp_path / "a", channel="mean"), quarters.mean(1), atol=1e-7)


def test_a_channel_that_is_not_there_is_named_with_those_that_are(speech, tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.stack([speech, speech], 1), RATE)
    soundfile.write(tmp_path / "mono.wav", speech, RATE)
    np.testing.assert_array_equal(read_audio(tmp_path / "mono.wav", channel="left"), read_audio(tmp_path / "mono.wav"))
    for name, channel, says in (
        ("stereo.wav", 2, "has no channel 2: its 2 channels are 0 to 1"),
        ("mono.wav", "right", r"has no channel right \(1\): it is mono, and its only channel is 0"),
    ):
        with pytest.raises(AudioError, match=says) as refusal:
            read_audio(tmp_path / name, channel=channel)
        assert refusal.value.kind == "no_channel"
    for wrong in ("middle", -1, "1.0", 1.0, True, ""):
        with pytest.raises(ValueError, match="channel must be mean, left, right or a number from 0, got"):
            read_audio(tmp_path / "mono.wav", channel=wrong)
        with pytest.raises(ValueError, match="channel must be mean, left, right or a number from 0, got"):
            AudioDecoderOptions(channel=wrong)


@pytest.mark.parametrize("kind", ["inline", "subprocess"])
def test_every_decoder_reads_the_channel_of_the_run_and_a_row_may_name_another(kind, speech, tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([speech, -0.5 * speech], 1), RATE)
    left, right = (read_audio(path, channel=number) for number in (0, 1))
    decoder = AudioDecoderOptions(kind=kind, channel="right").start()
    try:
        of_the_run = read_row(Row("a", path), sample_rate=RATE, decode=decoder.read_recording)
        of_the_row = read_row(Row("a", path, channel=0), sample_rate=RATE, decode=decoder.read_recording)
        with pytest.raises(AudioError, match="has no channel 5") as refusal:
            read_row(Row("a", path, channel=5), sample_rate=RATE, decode=decoder.read_recording)
    finally:
        decoder.close()
    assert torch.equal(of_the_run.waveform, right)
    assert torch.equal(of_the_row.waveform, left)
    assert refusal.value.kind == "no_channel"


def test_a_selected_channel_is_a_part_of_what_a_row_names(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((800, 2)), RATE)
    rows = [Row("a", path), Row("b", path, channel=0)]
    assert select_channel(rows, "mean") == tuple(rows)
    assert [row.channel for row in select_channel(rows, "right")] == ["right", 0]
    assert source_state(rows[0]) != source_state(select_channel(rows, "right")[0])


# ---------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def opposite(speech, tmp_path):
    """A folder with speech in two channels that cancel, at 8 kHz."""
    folder = tmp_path / "stereo"
    folder.mkdir()
    soundfile.write(folder / "a.wav", 0.5 * np.stack([speech, -speech], 1)[:8000], 8000)
    return folder


def test_extract_flags_cancelling_channels_and_a_folder_holds_one_channel(opposite, call, tmp_path):
    asked = ("extract", f"audio={opposite}", "audio_decoder=inline")
    code, shown, _ = call(*asked, "output=out")
    assert code == 0
    assert "1 × channels that cancel" in shown
    assert "1 resampled from 8 kHz, 1 mixed from stereo" in shown
    code, shown, _ = call(*asked, "output=out")  # kept from the first run, and said again
    assert "1 × channels that cancel" in shown
    assert "1 resampled from 8 kHz, 1 mixed from stereo" in shown
    code, _, said = call(*asked, "output=out", "channel=left")
    assert code == 2
    assert "channel" in said
    code, shown, _ = call(*asked, "output=left", "channel=left")
    assert code == 0
    assert "cancel" not in shown
    assert "1 resampled from 8 kHz, 1 channel 0 of stereo" in shown
    record = json.loads((tmp_path / "left" / "run.json").read_text())
    assert record["fingerprint"]["channel"] == "0"
    assert record["conversions"] == {"resampled from 8 kHz": 1, "channel 0 of stereo": 1}


@pytest.mark.parametrize("command", ["extract", "transcribe", "evaluate"])
def test_every_command_takes_a_channel_and_names_the_file_that_lacks_it(command, opposite, call, tmp_path):
    (tmp_path / "list.csv").write_text("path,text\nstereo/a.wav,one\n")
    asked = (command, f"audio={tmp_path / 'list.csv'}", "output=out")
    code, _, said = call(*asked, "channel=2")
    assert code == 1
    (line,) = (json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert line["kind"] == "no_channel"
    assert line["reason"] == "has no channel 2: its 2 channels are 0 to 1"
    code, _, said = call(*asked, "channel=middle")
    assert code == 2
    assert "channel must be mean, left, right or a number from 0, got middle" in said


# ---------------------------------------------------------------------------------------------------- kinds


def test_every_kind_of_failure_is_in_the_documented_list(speech, tmp_path, call):
    from conftest import ROOT

    folder = tmp_path / "audio"
    folder.mkdir()
    soundfile.write(folder / "good.wav", speech[:8000], RATE)
    content = (folder / "good.wav").read_bytes()
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no audio at all, only text")
    (folder / "cut.wav").write_bytes(content[:9000])
    soundfile.write(folder / "nothing.wav", speech[:0], RATE)
    soundfile.write(folder / "short.wav", speech[:399], RATE)
    soundfile.write(folder / "long.wav", np.tile(speech, 2), RATE)
    soundfile.write(folder / "slow.wav", speech[:800], 100)
    soundfile.write(folder / "many.wav", np.zeros((800, 70)), RATE)
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "flipped.flac", speech, RATE)
    damaged = bytearray((folder / "flipped.flac").read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    (folder / "flipped.flac").write_bytes(damaged)
    rows = [*sorted(path.name for path in folder.iterdir()), "gone.wav"]
    lines = [f"audio/{name},,," for name in rows] + ["audio/good.wav,beyond,20,1"]
    (tmp_path / "list.csv").write_text("\n".join(["path,id,offset,duration", *lines]) + "\n")
    code, _, _ = call("extract", "audio=list.csv", "output=out", "max_duration=5")
    assert code == 1
    found = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    kinds = {line["id"].removeprefix("audio/"): line["kind"] for line in found}
    assert kinds == {
        "empty.wav": "empty",
        "text.wav": "not_audio",
        "cut.wav": "truncated",
        "nothing.wav": "no_samples",
        "short.wav": "too_short",
        "long.wav": "too_long",
        "slow.wav": "bad_rate",
        "many.wav": "too_many_channels",
        "nan.wav": "non_finite",
        "flipped.flac": "damaged",
        "gone.wav": "missing",
        "beyond": "outside",
    }
    counts = json.loads((tmp_path / "out" / "run.json").read_text())["failure_kinds"]
    assert counts == dict.fromkeys(kinds.values(), 1)
    page = (ROOT / "docs" / "audio-and-lists.md").read_text()
    assert all(f"| `{kind}` |" in page for kind in FAILURE_KINDS)


# ---------------------------------------------------------------------------------------------------- training


def test_what_reading_the_training_data_has_shown_is_counted_before_training_and_kept(speech, tmp_path):
    from w2v_attn.corpus.splits import Splits
    from w2v_attn.training.options import CtcOptions
    from w2v_attn.training.preflight import DataScan, LengthCache, Unreadable, describe_data, scan_splits
    from w2v_attn.training.tasks.ctc import Ctc

    soundfile.write(tmp_path / "good.wav", speech, RATE)
    soundfile.write(tmp_path / "clipped.wav", np.clip(20 * speech, -1, 1), RATE)
    soundfile.write(tmp_path / "opposite.wav", np.stack([speech, -speech], 1), 8000)
    (tmp_path / "empty.wav").touch()
    rows = tuple(Row(path.name, path, text="one") for path in sorted(tmp_path.glob("*.wav")))

    def scan(rows) -> DataScan:
        found = LengthCache(tmp_path / "lengths.jsonl", RATE).of([(row, 30.0) for row in rows], lambda _: None)
        by_row = {f"train {row.id}": seen for row, seen in zip(rows, found, strict=True)}
        task = Ctc.from_data(CtcOptions(vocabulary="data"), rows, None)
        return scan_splits(
            Splits(rows, (), ()), task, by_row, sample_rate=RATE, frames_of=lambda n: n // 320, min_samples=400,
            shortest_factor=1.0,
        )  # fmt: skip

    for _ in range(2):  # read, and then kept
        found = scan(rows)
        assert [(dropped.row.id, dropped.kind) for dropped in found.dropped] == [("empty.wav", "empty")]
        shown = list(describe_data(found, Ctc.from_data(CtcOptions(vocabulary="data"), rows, None)))
        assert ("converted", "1 resampled from 8 kHz, 1 mixed from stereo") in shown
        assert ("flagged", "1 × clipped") in shown
        assert {value for name, value in shown if name == "flagged"} >= {"1 × clipped", "1 × channels that cancel"}
    left = scan(select_channel(rows, "left"))
    assert left.flags == {"clipped": 1}
    (missing,) = LengthCache(tmp_path / "more.jsonl", RATE).of([(Row("a", rows[0].path, channel=3), 9.0)], lambda _: 0)
    assert missing == Unreadable("has no channel 3: it is mono, and its only channel is 0", "no_channel")


def test_a_span_that_ends_after_its_recording_is_flagged():
    from w2v_attn.features.pooling import Span
    from w2v_attn.features.transform import FeatureTransform

    spans = {"a": [Span(0, 1), Span(0.5, 2.05), Span(1.5, 2.5)], "b": [Span(0, 1)]}
    transform = FeatureTransform(pooling="mean", spans=spans)
    assert transform.span_flags("a", 2.0) == ("segments beyond the end (1 of 3: up to 2.5 s of 2.00 s)",)
    assert transform.span_flags("a", 2.5) == transform.span_flags("b", 2.0) == transform.span_flags("c", 2.0) == ()
    assert FeatureTransform().span_flags("a", 2.0) == ()


def test_extract_and_convert_say_that_segments_end_after_their_recordings(speech, call, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech[:RATE], RATE)
    (tmp_path / "spans.csv").write_text("id,start,end\na.wav,0,0.5\na.wav,0.5,3\n")
    asked = ("pooling=mean", "segments=spans.csv")
    code, shown, _ = call("extract", "audio=a.wav", "output=pooled", "audio_decoder=inline", *asked)
    assert (code, "1 × segments beyond the end" in shown) == (0, True)
    call("extract", "audio=a.wav", "output=frames", "audio_decoder=inline")
    code, shown, _ = call("convert", "features=frames", "output=converted", "layout=mirrored", *asked)
    assert (code, "1 × segments beyond the end" in shown) == (0, True)
