"""A recording is cut short only if its own header states more than there is; a library's estimate is no statement."""

import struct

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH

from w2v_attn import read_audio
from w2v_attn.audio.integrity import mp3
from w2v_attn.audio.read_audio import AudioError, read_recording

RATE = 16_000


@pytest.fixture(scope="module")
def wave():
    """Five seconds of speech with a long silence, whose bit rates differ most; float32 [samples]."""
    parts = [soundfile.read(path, dtype="float32")[0] for path in sorted(SPEECH.rglob("*.flac"))[:6]]
    speech = np.concatenate(parts)[: 2 * RATE] * 0.9
    return np.concatenate([speech, 1e-4 * np.resize(speech, 3 * RATE)])


def variable(path, wave, rate=RATE):
    """Write an MP3 of variable bit rate, and return (its frame with the counts, its other frames)."""
    with soundfile.SoundFile(
        path, "w", rate, 1, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5
    ) as file:
        file.write(wave)
    content = path.read_bytes()
    first = content.index(b"\xff", 10 if content[:3] == b"ID3" else 0)
    length = mp3._length(content[first + 1 : first + 3])
    assert b"Xing" in content[first : first + length] or b"Info" in content[first : first + length]
    return content[first : first + length], content[first + length :]


@pytest.mark.parametrize("rate", [RATE, 24_000, 12_000, 44_100])
def test_an_mp3_of_variable_bit_rate_without_a_count_is_read_whole(rate, wave, tmp_path):
    """libsndfile/libsndfile #1001: it takes an estimate for the number of frames."""
    path = tmp_path / "a.mp3"
    _, frames = variable(path, wave, rate)
    counted = read_recording(path, sample_rate=rate)
    path.write_bytes(frames)
    found = read_recording(path, sample_rate=rate)
    assert counted.flags == found.flags == ()
    assert abs(len(counted.waveform) - len(wave)) <= 1
    assert 0 <= len(found.waveform) - len(counted.waveform) <= 3 * 1152  # what the counts would have trimmed


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_mp3_with_a_count_of_more_frames_than_there_are_is_cut_short(share, wave, tmp_path):
    path = tmp_path / "a.mp3"
    counts, frames = variable(path, wave)
    path.write_bytes(counts + frames[: int(share * len(frames))])
    with pytest.raises(AudioError, match="is truncated: its header states") as refusal:
        read_audio(path)
    assert refusal.value.kind == "truncated"


def test_a_count_that_includes_its_own_frame_is_healthy(wave, tmp_path):
    """mp3splt/mp3splt #338."""
    path = tmp_path / "a.mp3"
    counts, frames = variable(path, wave)
    at = max(counts.find(b"Xing"), counts.find(b"Info")) + 8
    more = struct.pack(">I", int.from_bytes(counts[at : at + 4], "big") + 1)
    path.write_bytes(counts[:at] + more + counts[at + 4 :] + frames)
    assert abs(len(read_audio(path)) - len(wave)) <= 3 * 576


def vbri(counts, frames):
    """Return the header frame of Fraunhofer's encoder with this number of frames, in place of Xing's."""
    header = b"VBRI" + struct.pack(">HHHIIHHHH", 1, 0, 50, 0, frames, 0, 1, 2, 1)
    return (counts[:4] + bytes(32) + header).ljust(len(counts), b"\0")


def test_the_count_of_fraunhofer_is_checked_too(wave, tmp_path):
    path = tmp_path / "a.mp3"
    counts, frames = variable(path, wave)
    at = max(counts.find(b"Xing"), counts.find(b"Info")) + 8
    count = int.from_bytes(counts[at : at + 4], "big")
    assert len(counts) >= 62
    path.write_bytes(vbri(counts, count) + frames)
    assert len(read_audio(path)) >= len(wave)
    path.write_bytes(vbri(counts, 2 * count) + frames)
    with pytest.raises(AudioError, match="is truncated: its header states"):
        read_audio(path)


def test_junk_and_tags_around_the_frames_of_an_mp3_are_healthy(wave, tmp_path):
    """libsndfile/libsndfile #876: pictures; and what servers, editors and old players leave."""
    path = tmp_path / "a.mp3"
    counts, frames = variable(path, wave)
    expected = read_recording(path)
    picture = b"APIC" + struct.pack(">I", 60_000) + bytes(2) + b"\0image/jpeg\0\3\0" + b"\xff\xd8\xff\xe0" * 14_997
    id3 = b"ID3\3\0\0" + bytes([0, len(picture) >> 14 & 127, len(picture) >> 7 & 127, len(picture) & 127]) + picture
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8)
    id3v1 = b"TAG" + b"title".ljust(125)
    for before, behind in (
        (id3, id3v1),
        (bytes(4001), bytes(999)),
        (b"HTTP/1.0 200 OK\r\nicy-name: radio\r\n\r\n", b""),
        (b"", ape + id3v1),
        (b"", b"LYRICSBEGINLYR00005Hello000025LYRICS200" + id3v1),
    ):
        path.write_bytes(before + counts + frames + behind)
        found = read_recording(path)
        assert found.flags == ()
        assert torch.equal(found.waveform, expected.waveform)


# ------------------------------------------------------------------------------------------------- containers


def container(path, wave, form, codec, **options):
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=form, **options) as opened:
        stream = opened.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=RATE)
        for part in resampler.resample(frame):
            opened.mux(stream.encode(part))
        opened.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        ("mp4", "alac", {}),
        ("mp4", "alac", {"options": {"movflags": "faststart"}}),
        ("mp4", "alac", {"options": {"movflags": "frag_keyframe+empty_moov", "frag_duration": "300000"}}),
        ("matroska", "flac", {}),
        ("webm", "libopus", {}),
    ],
)
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_container_that_has_fewer_bytes_than_it_states_is_cut_short(form, codec, options, share, wave, tmp_path):
    path = container(tmp_path / "a", wave, form, codec, **options)
    assert abs(len(read_audio(path)) - len(wave)) < 1000
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AudioError, match=r"truncated|damaged"):
        read_audio(path)


def test_a_stream_of_aac_whose_length_ffmpeg_estimates_is_read_whole(wave, tmp_path):
    """The first seconds have many bits, the rest few: by the bit rate of its beginning it would be far shorter."""
    path = container(tmp_path / "a.aac", wave, "adts", "aac")
    found = read_recording(path)
    assert abs(len(found.waveform) - len(wave)) < 3000
    assert found.flags == ()


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_F000])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_wav_from_a_pipe_is_read_whole(size, subtype, wave, tmp_path):
    """kkroening/ffmpeg-python #118, kaldi-asr/kaldi #1567, rs1729/RS #39: 2³² − 1, nearly 2³¹ and 0 bytes."""
    path = tmp_path / "a.wav"
    soundfile.write(path, wave[:4001], RATE, subtype=subtype)
    whole, content = read_audio(path), path.read_bytes()
    at = content.index(b"data") + 4
    path.write_bytes(
        content[:4] + struct.pack("<I", size) + content[8:at] + struct.pack("<I", size) + content[at + 4 :]
    )
    found = read_recording(path)
    assert found.flags == ()
    assert torch.equal(found.waveform[:4001], whole)
    assert len(found.waveform) - 4001 <= 1  # a byte of padding may be taken for a sample of one byte


def test_a_wav_without_samples_has_none_though_chunks_follow(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), RATE)
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")
    with pytest.raises(AudioError) as refusal:
        read_audio(path)
    assert refusal.value.kind == "no_samples"


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_bw64_is_an_rf64_of_another_name(subtype, wave, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, RATE, format="RF64", subtype=subtype)
    expected, content = read_audio(path), path.read_bytes()
    path.write_bytes(b"BW64" + content[4:])
    found = read_recording(path)
    assert (found.flags, torch.equal(found.waveform, expected)) == ((), True)
    path.write_bytes(b"BW64" + content[4:-1000])
    with pytest.raises(AudioError, match="is truncated"):
        read_audio(path)


@pytest.mark.parametrize(("subtype", "code"), [("FLOAT", 3), ("ALAW", 6), ("PCM_16", 1)])
def test_the_samples_of_an_extensible_w64_are_of_its_sub_format(subtype, code, wave, tmp_path):
    """libsndfile takes the floats of such a file for whole numbers."""
    path = tmp_path / "a.w64"
    soundfile.write(path, wave, RATE, format="W64", subtype=subtype)
    expected, content = read_audio(path), path.read_bytes()
    at = content.index(b"fmt ")
    assert content[at + 24 : at + 26] == struct.pack("<H", code)
    data = content.index(b"data\xf3")
    form = struct.pack("<H", 0xFFFE) + content[at + 26 : at + 40] + struct.pack("<HHI", 22, 32, 4)
    form += struct.pack("<H", code) + bytes.fromhex("000000001000800000aa00389b71")
    chunk = content[at : at + 16] + struct.pack("<Q", 24 + len(form)) + form
    path.write_bytes(content[:at] + chunk + content[data:])
    found = read_recording(path)
    assert (found.flags, torch.equal(found.waveform, expected)) == ((), True)


@pytest.mark.parametrize("at", [0.4, 0.8])
def test_a_flac_of_32_bits_is_read_by_ffmpeg_and_its_checksum_holds(at, wave, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.flac"
    with av.open(str(path), "w", format="flac") as opened:
        stream = opened.add_stream("flac", rate=RATE, layout="mono")
        stream.codec_context.format = "s32"
        stream.codec_context.options = {"strict": "-2", "bits_per_raw_sample": "32"}
        exact = (wave.astype(np.float64) * 2**31).astype(np.int32)
        frame = av.AudioFrame.from_ndarray(exact[None], "s32", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        opened.mux(stream.encode(frame))
        opened.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    if (int.from_bytes(content[18:26], "big") >> 36 & 31) + 1 != 32:
        pytest.skip("this FFmpeg does not write FLAC of 32 bits")
    found = read_recording(path)
    assert found.flags == ()
    np.testing.assert_array_equal(found.waveform, (exact / 2**31).astype(np.float32))
    content[int(at * len(content))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(AudioError, match="damaged"):
        read_audio(path)
