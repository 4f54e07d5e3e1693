"""Audio files of every kind are read, read with a warning, or refused with a reason."""

import json
import os
import re
import struct
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_attn import read_audio
from w2v_attn.audio.decoders import AudioError
from w2v_attn.audio.read_audio import read_recording

SECONDS, RATE = 3, 16_000
# format, subtype, how far a decoded sample may be from what was written.
FORMATS = {
    "wav": ("WAV", "PCM_16", 1e-4),
    "u8.wav": ("WAV", "PCM_U8", 1e-2),
    "24.wav": ("WAV", "PCM_24", 1e-6),
    "32.wav": ("WAV", "PCM_32", 1e-7),
    "float.wav": ("WAV", "FLOAT", 0.0),
    "double.wav": ("WAV", "DOUBLE", 1e-7),
    "ulaw.wav": ("WAV", "ULAW", 3e-2),
    "flac": ("FLAC", "PCM_16", 1e-4),
    "24.flac": ("FLAC", "PCM_24", 1e-6),
    "8.flac": ("FLAC", "PCM_S8", 1e-2),
    "ogg": ("OGG", "VORBIS", None),
    "opus": ("OGG", "OPUS", None),
    "mp3": ("MP3", "MPEG_LAYER_III", None),
    "aiff": ("AIFF", "PCM_16", 1e-4),
    "caf": ("CAF", "PCM_16", 1e-4),
    "au": ("AU", "PCM_16", 1e-4),
    "sph": ("NIST", "PCM_16", 1e-4),
    "w64": ("W64", "PCM_16", 1e-4),
    "rf64": ("RF64", "PCM_16", 1e-4),
}


@pytest.fixture(scope="module")
def wave(request):
    """Three seconds of real speech, float32 [samples], below full scale."""
    parts = [soundfile.read(path, dtype="float32")[0] for path in sorted(SPEECH.rglob("*.flac"))[:6]]
    return np.concatenate(parts)[: SECONDS * RATE] * 0.9


def write(path, samples, name, rate=RATE):
    kind, subtype, _ = FORMATS[name]
    soundfile.write(path, samples, rate, format=kind, subtype=subtype)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_whatever_its_name_ends_in(name, wave, tmp_path):
    bound = FORMATS[name][2]
    for file in (f"a.{name}", f"A.{name.upper()}", "no_extension", "wrong.txt", "wrong.raw"):
        found = read_audio(write(tmp_path / file, wave, name))
        assert found.dtype == torch.float32
        assert found.shape == (len(wave),)
        if bound is not None:
            assert (found - torch.from_numpy(wave)).abs().max() <= bound
        else:
            assert np.corrcoef(found.numpy(), wave)[0, 1] > 0.9


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_are_averaged(channels, wave, tmp_path):
    mixed = wave[:, None] * np.linspace(0, 1, channels, dtype=np.float32)
    found = read_recording(write(tmp_path / "a.wav", mixed, "float.wav"))
    np.testing.assert_allclose(found.waveform, mixed.mean(1), atol=1e-6)
    assert found.source_channels == channels


def test_more_channels_than_any_recorder_has_are_refused(tmp_path):
    with pytest.raises(AudioError, match="declares 65 channels"):
        read_audio(write(tmp_path / "a.wav", np.zeros((800, 65), np.float32), "wav"))


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 22050, 44100, 44101, 48000, 96000, 384000])
def test_any_rate_becomes_16_khz_with_the_pitch_it_had(rate, tmp_path):
    seconds, pitch = 1.3, 440.0
    samples = np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate, dtype=np.float32) * 0.5
    found = read_recording(write(tmp_path / "a.wav", samples, "float.wav", rate))
    assert abs(found.duration - seconds) < 0.002
    assert found.source_rate == rate
    spectrum = np.abs(np.fft.rfft(found.waveform.numpy()))
    assert abs(spectrum.argmax() / found.duration - pitch) < 1
    assert found.waveform[800:-800].abs().max() == pytest.approx(0.5, abs=0.005)


def test_resampling_in_blocks_is_resampling_at_once(monkeypatch, wave, tmp_path):
    import soxr

    from w2v_attn.audio import decoders

    monkeypatch.setattr(decoders, "BLOCK_SAMPLES", 777)
    found = read_audio(write(tmp_path / "a.wav", wave, "float.wav", 44100))
    at_once = soxr.resample(wave, 44100, RATE, "HQ")
    assert abs(len(found) - len(at_once)) <= 1
    n = min(len(found), len(at_once))
    np.testing.assert_allclose(found[:n], at_once[:n], atol=1e-4)


# ---------------------------------------------------------------------------------------- truncated, damaged


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_short_is_refused(name, share, wave, tmp_path):
    path = write(tmp_path / f"a.{name}", wave, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AudioError, match=r"truncated|damaged"):
        read_audio(path)


@pytest.mark.parametrize("at", [0.3, 0.5, 0.9])
def test_flipped_bits_in_flac_are_refused(at, wave, tmp_path):
    path = write(tmp_path / "a.flac", wave, "flac")
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(AudioError, match="damaged"):
        read_audio(path)


def flac_with_length(path, samples):
    """Overwrites the number of samples that STREAMINFO states: the low 36 bits of bytes 18 to 25."""
    content = bytearray(path.read_bytes())
    field = int.from_bytes(content[18:26], "big")
    content[18:26] = (field >> 36 << 36 | samples).to_bytes(8, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("claimed", "says"), [(2**36 - 1, "header claims"), (0, "does not state"), (10**6, "header claims")]
)
def test_a_flac_that_is_wrong_about_its_length_is_read_with_a_remark(claimed, says, wave, tmp_path):
    path = flac_with_length(write(tmp_path / "a.flac", wave, "flac"), claimed)
    found = read_recording(path)
    assert len(found.waveform) == len(wave)
    assert says in found.flags[0]


def test_a_flac_without_checksum_that_states_more_samples_is_truncated(wave, tmp_path):
    path = flac_with_length(write(tmp_path / "a.flac", wave, "flac"), len(wave) + 5)
    content = bytearray(path.read_bytes())
    content[26:42] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="truncated"):
        read_audio(path)


def test_a_wav_of_unknown_length_is_read(wave, tmp_path):
    path = write(tmp_path / "a.wav", wave, "wav")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFF000):
        content[at : at + 4] = struct.pack("<I", unknown)
        path.write_bytes(content)
        assert len(read_audio(path)) == len(wave)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"hello, this is text\n" * 50, bytes(1000), b"\xff" * 4096])
def test_what_is_no_audio_is_refused(content, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError):
        read_audio(path)


@pytest.mark.parametrize("name", ["wav", "flac", "aiff", "caf"])
def test_a_header_without_samples_is_refused(name, tmp_path):
    with pytest.raises(AudioError):
        read_audio(write(tmp_path / "a", np.zeros(0, np.float32), name))


@given(
    at=st.integers(0, 10**6),
    value=st.integers(0, 255),
    cut=st.integers(0, 10**6),
    name=st.sampled_from(sorted(FORMATS)),
)
@settings(max_examples=80, deadline=None)
def test_no_mutation_of_a_file_crashes_or_gives_nonsense(at, value, cut, name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"mutant.{name}"
    tone = np.sin(np.arange(8000, dtype=np.float32) / 20) * 0.5
    content = bytearray(write(path, tone, name).read_bytes())
    content[at % len(content)] = value
    if cut % 3 == 0:
        del content[cut % len(content) :]
    path.write_bytes(content)
    try:
        found = read_audio(path, max_duration=100)
    except AudioError:
        return
    assert torch.isfinite(found).all()
    assert 0 < len(found) <= 100 * RATE


@pytest.mark.parametrize("name", ["caf", "w64", "wav", "aiff", "rf64", "sph", "au", "ogg"])
def test_lengths_in_a_header_that_lead_nowhere_are_refused_or_passed_over(name, tmp_path):
    tone = np.sin(np.arange(2000, dtype=np.float32) / 20) * 0.5
    content = write(tmp_path / f"a.{name}", tone, name).read_bytes()
    for at in range(4, 96):
        path = tmp_path / f"mutant.{name}"
        path.write_bytes(content[:at] + b"\x7f" + content[at + 1 :])
        try:
            assert len(read_audio(path, max_duration=100)) > 0
        except AudioError:
            continue


# -------------------------------------------------------- damage that decoders pass over, all found by fuzzing.py


def ogg_pages(content):
    """Return the offsets of the pages, and of the end."""
    starts, at = [], 0
    while at < len(content):
        starts.append(at)
        segments = content[at + 26]
        at += 27 + segments + sum(content[at + 27 : at + 27 + segments])
    return [*starts, len(content)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_a_healthy_file_has_no_remarks(name, rate, wave, tmp_path):
    assert read_recording(write(tmp_path / "a", wave[:47_999], name, rate)).flags == ()


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_an_ogg_with_a_flipped_bit_anywhere_is_refused(name, wave, tmp_path):
    content = write(tmp_path / "a", wave, name).read_bytes()
    for at in range(0, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "b").write_bytes(damaged)
        with pytest.raises(AudioError):
            read_audio(tmp_path / "b")


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_an_ogg_that_lacks_a_page_is_refused_and_bytes_between_pages_are_ignored(name, wave, tmp_path):
    content = write(tmp_path / "a", wave, name).read_bytes()
    starts = ogg_pages(content)
    assert len(starts) > 5
    (tmp_path / "b").write_bytes(content[: starts[3]] + content[starts[4] :])
    with pytest.raises(AudioError, match=r"page 3 is missing|truncated"):
        read_audio(tmp_path / "b")
    (tmp_path / "b").write_bytes(content[: starts[3]] + b"between" + content[starts[3] :])
    assert torch.equal(read_audio(tmp_path / "b"), read_audio(tmp_path / "a"))


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_an_ogg_of_several_recordings_is_read_to_the_end_of_the_last(name, wave, tmp_path):
    first, second = write(tmp_path / "a", wave, name), write(tmp_path / "b", wave[:30_000], name)
    expected = torch.cat([read_audio(first), read_audio(second)])
    first.write_bytes(first.read_bytes() + second.read_bytes())
    found = read_recording(first)
    assert torch.equal(found.waveform, expected)
    assert found.flags == ()
    content = first.read_bytes()
    first.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(AudioError, match="truncated"):
        read_audio(first)


def test_an_ogg_of_recordings_of_two_rates_is_refused_with_both(wave, tmp_path):
    parts = [write(tmp_path / str(rate), wave, "ogg", rate).read_bytes() for rate in (16_000, 22_050)]
    (tmp_path / "a").write_bytes(b"".join(parts))
    with pytest.raises(AudioError, match="of 1 × 16000 Hz and of 1 × 22050 Hz one after the other") as refusal:
        read_audio(tmp_path / "a")
    assert refusal.value.kind == "unsupported"


def test_an_ogg_of_a_broadcast_that_was_joined_later_is_whole(wave, tmp_path):
    from w2v_attn.audio.integrity.ogg import _checksum, find_ogg_damage

    content = write(tmp_path / "a", np.tile(wave, 4), "ogg").read_bytes()
    starts = ogg_pages(content)
    pages = [content[start:end] for start, end in pairwise(starts)]
    assert all(_checksum(page) == page[22:26] for page in pages)  # as the library that wrote it computes it
    header = sum(not any(page[6:14]) for page in pages)
    (tmp_path / "b").write_bytes(b"".join(pages[:header] + pages[header + 2 :]))
    with (tmp_path / "b").open("rb") as file:
        assert find_ogg_damage(file) is None
    (tmp_path / "b").write_bytes(b"".join(pages[: header + 1] + pages[header + 2 :]))
    with (tmp_path / "b").open("rb") as file:
        assert "missing" in find_ogg_damage(file)


@pytest.mark.parametrize(("byte", "bit", "what"), [(19, 6, "Hz"), (20, 1, "channels"), (21, 6, "bits")])
def test_a_flac_whose_header_and_first_frame_disagree_is_refused(byte, bit, what, wave, tmp_path):
    content = bytearray(write(tmp_path / "a", np.stack([wave, wave], 1), "flac").read_bytes())
    content[byte] ^= 1 << bit
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(AudioError, match=rf"is damaged: its header states \d+ {what}, its first frame \d+"):
        read_audio(tmp_path / "a")


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 44_100, 44_101, 96_000, 123_450, 384_000])
def test_the_first_frame_of_a_healthy_flac_says_what_its_header_says(rate, tmp_path):
    from w2v_attn.audio.integrity import flac

    for channels, subtype in ((1, "PCM_S8"), (2, "PCM_16"), (8, "PCM_24")):
        noise = np.random.default_rng(0).standard_normal((5000, channels)) / 10
        soundfile.write(tmp_path / "a", noise, rate, format="FLAC", subtype=subtype)
        with (tmp_path / "a").open("rb") as file:
            header = flac.read_flac_header(file)
            file.seek(header.frames_at)
            assert flac._frame_format(file.read(16)) == header.format


@pytest.mark.parametrize("name", ["flac", "wav"])
def test_ffmpeg_is_no_way_around_a_refusal(name, wave, tmp_path):
    """FFmpeg reads what is left of damaged files, without a warning."""
    av = pytest.importorskip("av")
    if name == "flac":
        content = bytearray(write(tmp_path / "a", wave, name).read_bytes())
        content[46] ^= 1  # the length of a comment
        content[20_000] ^= 0x10
    else:
        soundfile.write(tmp_path / "a", np.stack([wave, wave], 1), RATE, format="WAVEX", subtype="PCM_16")
        content = bytearray((tmp_path / "a").read_bytes())
        content[32:36] = b"\xff\x7f\0\0"  # bytes of a frame, bits of a sample
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(AudioError, match="is damaged"):
        read_audio(tmp_path / "a")
    with av.open(str(tmp_path / "a")) as container:
        assert len(list(container.decode(audio=0))) > 1


def test_a_wav_that_contradicts_itself_is_flagged(wave, tmp_path):
    content = write(tmp_path / "a", wave, "wav").read_bytes()
    for at, field in ((24, struct.pack("<I", RATE + 1)), (28, bytes(4))):
        (tmp_path / "b").write_bytes(content[:at] + field + content[at + len(field) :])
        assert read_recording(tmp_path / "b").flags[0].startswith("header contradicts itself (")


def test_samples_after_those_that_a_wav_counts_are_flagged_and_chunks_are_not(wave, tmp_path):
    content = write(tmp_path / "a", wave, "wav").read_bytes()
    at = content.index(b"data") + 4
    stale = content[:at] + struct.pack("<I", 40_000) + content[at + 4 :]
    (tmp_path / "b").write_bytes(stale)
    assert read_recording(tmp_path / "b").flags == (
        f"bytes behind its samples ({len(content) - at - 4 - 40_000}, which are no chunk: samples that its header does "
        "not count?)",
    )
    chunk = b"LIST" + struct.pack("<I", 5) + b"INFO!\0"
    (tmp_path / "b").write_bytes(content + chunk + chunk)
    assert read_recording(tmp_path / "b").flags == ()


def test_sound_after_that_of_a_sphere_is_flagged(wave, tmp_path):
    path = write(tmp_path / "a", wave, "sph")
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert read_recording(path).flags == (f"header claims {len(wave)} samples, the file holds {len(wave) + 500}",)


def remarks(content, path):
    path.write_bytes(content)
    return " ".join(read_recording(path).flags)


def test_missing_and_extra_bytes_of_an_mp3_are_flagged(wave, tmp_path):
    content, path = write(tmp_path / "a", wave, "mp3").read_bytes(), tmp_path / "b"
    frame = content[:2]
    middle = content.index(frame, len(content) // 2)
    assert "bytes between its frames that are no sound (300)" in remarks(
        content[:middle] + bytes([9] * 300) + content[middle:], path
    )
    assert "cut short in its last frame (9 bytes are missing)" in remarks(content[:-9], path)
    assert "more frames than its header counts" in remarks(content + content, path)
    broken = bytearray(content)
    broken[7] ^= 4  # then mpg123 takes the frame of numbers for sound, and leaves out a second
    assert "fewer samples than its frames have" in remarks(bytes(broken), path)
    tags = b"ID3\4\0\0\0\0\0\x0a" + bytes(10), b"TAG" + bytes(125)
    assert remarks(tags[0] + bytes(100) + content + tags[1], path) == ""


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def test_the_command_names_every_file_that_cannot_be_used_and_processes_every_other(wave, tmp_path, call):
    """One run over files of every kind; a reason of None means that it writes features."""
    folder = tmp_path / "audio"
    folder.mkdir()

    def path(name):
        return folder / name

    path("empty.wav").touch()
    path("text.wav").write_text("no audio")
    write(path("header.wav"), wave[:0], "wav")
    reasons = {"empty.wav": "is empty", "text.wav": "is not audio", "header.wav": "samples"}
    for name in ("wav", "flac", "ogg", "opus", "mp3"):
        content = write(path(f"good.{name}"), wave, name).read_bytes()
        path(f"cut.{name}").write_bytes(content[: len(content) * 2 // 3])
        reasons |= {f"good.{name}": None, f"cut.{name}": "truncated|damaged"}
    path("flipped.flac").write_bytes(flipped(path("good.flac").read_bytes(), 20_000))
    flac_with_length(write(path("claims.flac"), wave, "flac"), 2**36 - 1)
    flac_with_length(write(path("unknown.flac"), wave, "flac"), 0)
    write(path("hour.flac"), np.zeros(3600 * RATE, np.int16), "flac")
    write(path("1hz.wav"), wave, "wav", 1)
    reasons |= {"flipped.flac": "damaged", "claims.flac": None, "unknown.flac": None, "hour.flac": "max_duration=60"}
    reasons |= {"1hz.wav": "sample rate of 1 Hz"}
    for name, (rate, channels) in {"44101": (44_101, 1), "8000": (8000, 1), "8 channels": (48_000, 8)}.items():
        write(path(f"{name}.WAV"), np.repeat(wave[:, None], channels, 1), "wav", rate)
        reasons[f"{name}.WAV"] = None
    for samples in (1, 399, 400):
        write(path(f"{samples}.wav"), wave[:samples], "wav")
        reasons[f"{samples}.wav"] = None if samples == 400 else "at least 400 are needed"
    for name, value in {"zeros": 0.0, "constant": 0.5, "nan": np.nan, "infinite": np.inf}.items():
        write(path(f"{name}.wav"), np.full(RATE, value, np.float32), "float.wav")
        reasons[f"{name}.wav"] = None if value < 1 else "NaN or infinite"
    write(path("loud.wav"), 1000 * wave, "float.wav")
    reasons["loud.wav"] = None
    write(path("not listed.txt"), wave, "wav")

    code, shown, _ = call("extract", f"audio={folder}", "output=out", "max_duration=60")
    assert code == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    found = {line["id"]: line["reason"] for line in lines}
    assert found.keys() == {name for name, reason in reasons.items() if reason is not None}
    for name, reason in found.items():
        assert re.search(reasons[name], reason), (name, reason)
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.safetensors")}
    assert written == {f"{name}.safetensors" for name, reason in reasons.items() if reason is None}
    for remark in ("1 × .txt", "1 × all zeros", "1 × constant", "1 × louder than full scale"):
        assert remark in shown


def test_no_damage_goes_by_in_silence():
    """A small sample of what `PYTHONPATH=tests python tests/stress/fuzzing.py` does ten thousand times."""
    import fuzzing

    found = fuzzing.fuzz(fuzzing.seeds(None), seed=0, count=700)
    assert found["wrong"] == []
    assert all(len(outcomes) > 2 for outcomes in found["found"].values())


# ------------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize(("value", "flag"), [(0.0, "all zeros"), (0.25, "constant")])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_silence_and_constants_are_read_and_flagged_at_any_rate(value, flag, rate, tmp_path):
    found = read_recording(write(tmp_path / "a.wav", np.full(5000, value, np.float32), "wav", rate))
    assert len(found.waveform) == pytest.approx(5000 * RATE / rate, abs=1)
    assert found.flags == (flag,)


def test_a_thousand_times_full_scale_is_read_and_flagged(wave, tmp_path):
    loud = 1000 * wave / np.abs(wave).max()
    found = read_recording(write(tmp_path / "a.wav", loud, "float.wav"))
    assert found.flags == ("louder than full scale (1e+03 ×)",)
    np.testing.assert_array_equal(found.waveform, loud)


def test_samples_that_overflow_in_resampling_are_refused(tmp_path):
    huge = 3.3e38 * np.sign(np.sin(np.arange(9000) / 3)).astype(np.float32)
    with pytest.raises(AudioError, match="overflows"):
        read_audio(write(tmp_path / "a.wav", huge, "float.wav", 44100))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(value, wave, tmp_path):
    broken = wave.copy()
    broken[20_000] = value
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_audio(write(tmp_path / "a.wav", broken, "float.wav"))


@pytest.mark.parametrize("rate", [1, 3999, 384001])
def test_rates_that_no_recorder_has_are_refused(rate, tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(500, np.float32), "wav", RATE)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="sample rate"):
        read_audio(path)


def test_a_recording_beyond_the_limit_is_refused_before_it_is_decoded_whole(tmp_path, monkeypatch):
    path = write(tmp_path / "hour.flac", np.zeros(3600 * RATE, np.int16), "flac")
    assert path.stat().st_size < 400_000
    read = []
    right = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, *a, **k: read.append(n) or right(self, n, *a, **k))
    with pytest.raises(AudioError, match="max_duration=600"):
        read_audio(path, max_duration=600)
    assert sum(read) < 1000 * RATE


def test_memory_is_bounded_by_what_is_there_not_by_what_is_claimed(wave, tmp_path):
    claims = flac_with_length(write(tmp_path / "claims.flac", wave, "flac"), 2**36 - 1)
    coprime = write(tmp_path / "coprime.wav", np.tile(wave, 20), "wav", 44101)
    code = (
        "import resource, sys, w2v_attn\n"
        "w2v_attn.read_audio(sys.argv[1])\n"  # imports come first
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "[w2v_attn.read_audio(path) for path in sys.argv[2:]]\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    small = write(tmp_path / "small.wav", wave, "wav", 48000)
    done = subprocess.run(
        [sys.executable, "-c", code, small, claims, coprime], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150


@pytest.mark.parametrize("broken", ["absent", "folder"])
def test_what_cannot_be_opened_has_a_reason(broken, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(AudioError, match="cannot be read"):
        read_audio(tmp_path / broken)


@pytest.mark.parametrize("name", ["flac", "wav", "ogg", "mp3"])
def test_a_file_that_is_removed_while_it_is_read_is_read(name, wave, tmp_path):
    from w2v_attn.audio.samples import read_samples

    path = write(tmp_path / "a", wave, name)
    reading = read_samples(path, sample_rate=RATE)
    block = next(reading)
    path.unlink()
    assert len(block) + sum(map(len, reading)) == len(wave)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_has_a_reason(wave, tmp_path):
    path = write(tmp_path / "a.wav", wave, "wav")
    path.chmod(0)
    with pytest.raises(AudioError, match="Permission denied"):
        read_audio(path)


# ------------------------------------------------------------------------------------------ FFmpeg's formats


@pytest.fixture(scope="module")
def m4a(tmp_path_factory, wave):
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("av") / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_m4a_is_read_with_the_extra(m4a, wave):
    found = read_audio(m4a)
    assert abs(len(found) - len(wave)) < 4096
    assert found.abs().max() > 0.1


def test_ffmpeg_reads_many_interleaved_channels(wave, tmp_path):
    """Reading beyond the eighth channel once crashed the process: see `_FFmpegSource.blocks`."""
    av = pytest.importorskip("av")
    path, channels = tmp_path / "a.mka", 12
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout=f"{channels}C")
        samples = np.repeat((wave * 32767).astype(np.int16), channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, "s16", f"{channels}C")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_recording(path)
    assert found.source_channels == channels
    np.testing.assert_allclose(found.waveform, wave, atol=1e-4)


def test_webm_is_read_with_the_extra(wave, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.webm"
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_recording(path)
    assert found.flags == ()
    assert abs(len(found.waveform) - len(wave)) < 1600
    assert np.corrcoef(found.waveform[: len(wave) - 1600], wave[: len(found.waveform)][: len(wave) - 1600])[0, 1] > 0.8


def test_m4a_without_the_extra_names_it(m4a, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"pip install 'w2v_attn\[av\]'"):
        read_audio(m4a)


def test_an_m4a_that_is_cut_short_is_refused(m4a, tmp_path):
    path = tmp_path / "short.m4a"
    path.write_bytes(m4a.read_bytes()[:-3000])
    with pytest.raises(AudioError):
        read_audio(path)


def test_the_shipped_clips_are_what_their_list_says(clips):
    assert len(clips) >= 30
    assert len({text for _, text in clips}) > 20
    assert {path for path, _ in clips} == set(SPEECH.rglob("*.flac"))
    for path, text in clips:
        found = read_recording(path)
        assert found.flags == ()
        assert 0.2 < found.duration < 6
        assert text == text.lower().strip()
