"""Writes healthy recordings with every encoder and container of ffmpeg, and reads them: none may be refused.

  PYTHONPATH=tests python tests/stress/codecs_of_ffmpeg.py                  all of them: some minutes
  PYTHONPATH=tests python tests/stress/codecs_of_ffmpeg.py --only mp3       those whose names contain this
  PYTHONPATH=tests python tests/stress/codecs_of_ffmpeg.py --keep FOLDER    and keeps the files

What is right: the number of samples is that of ffmpeg's own decoder, exactly for codecs without loss, and up to the
delay of the codec for others, because decoders differ in how much of a codec's delay they remove. The rate and the
number of channels are those that ffmpeg finds. A healthy recording is not flagged.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from w2v_attn.audio.read_audio import AudioError, Recording, read_recording

ROOT = Path(__file__).resolve().parents[2]
FFMPEG = ("ffmpeg", "-y", "-nostdin", "-loglevel", "error")
HAS_FFMPEG = shutil.which("ffmpeg") is not None

# (samples, Hz, channels) that are written with each encoder: small and odd numbers, and every usual rate.
SHAPES = (
    (16_000, 16_000, 1),
    (1, 16_000, 1),
    (399, 8000, 1),
    (400, 16_000, 2),
    (10_007, 22_050, 1),
    (30_011, 44_100, 2),
    (12_345, 48_000, 2),
    (7919, 11_025, 1),
    (20_011, 96_000, 2),
    (9973, 48_000, 6),
    (5003, 44_100, 3),
)
TAGS = ("-metadata", "title=Ein Tïtel", "-metadata", "artist=someone", "-metadata", "comment=" + 300 * "long ")
# Seconds that decoders of a codec with loss may differ by: delays and the padding of the last frame.
LOSSY_SECONDS = 0.2
# Largest difference between two decoders of one codec without loss, or with rounding only.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Encoding:
    """How a file is written.

    Attributes:
        name: What it is called; what follows its last dot is the extension of the file.
        arguments: Of ffmpeg, before the output.
        rates, channels: What the encoder accepts; empty: all.
        exact: Whether the codec keeps the number of samples.
        pipe: Whether ffmpeg writes to a pipe and cannot go back to fill in lengths.
        art: Whether a picture is added.
        padding: Samples that the container may add at the end.
        shapes: How many of SHAPES are written.
        refusal: The kind of the refusal, where the content does not tell what it is.
        before, behind: Bytes that are put before and behind what ffmpeg wrote.
        edit: What else is done to what ffmpeg wrote.
    """

    name: str
    arguments: tuple[str, ...]
    rates: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    exact: bool = True
    pipe: bool = False
    art: bool = False
    padding: int = 0
    shapes: int = 5
    refusal: str | None = None
    before: bytes = b""
    behind: bytes = b""
    edit: Callable[[bytes], bytes] | None = None


def _pcm(container: str, *codecs: str, **options: Any) -> Iterator[Encoding]:
    for codec in codecs:
        yield Encoding(f"{codec}.{container}", ("-c:a", codec), **options)


OPUS_RATES, OPUS_CHANNELS = (8000, 16_000, 48_000), (1, 2)
MP3_RATES = (8000, 11_025, 16_000, 22_050, 44_100, 48_000)
AAC_RATES = (8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)
LOSSY = {"exact": False}
STEREO = {"channels": (1, 2)}
MP3 = {"rates": MP3_RATES, "exact": False} | STEREO
AAC = {"rates": AAC_RATES, "exact": False}
OPUS = {"rates": OPUS_RATES, "exact": False} | STEREO
AC3 = {"rates": (44_100, 48_000), "channels": (1, 2, 6), "exact": False}
TELEPHONE = {"rates": (8000,), "channels": (1,), "exact": False}
FRAGMENTS = ("-movflags", "frag_keyframe+empty_moov", "-f", "mp4")

ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")
APE_TAG = b"APETAGEX" + struct.pack("<IIII", 2000, 32 + 20, 1, 1 << 31) + bytes(8)
APE_TAG = (
    APE_TAG
    + struct.pack("<II", 3, 0)
    + b"Artist\0ABC"[:12]
    + b"APETAGEX"
    + struct.pack("<IIII", 2000, 52, 1, 0)
    + bytes(8)
)
LYRICS3 = b"LYRICSBEGINLYR00005Hello000025LYRICS200"
CHUNKS = b"LIST" + struct.pack("<I", 5) + b"INFO!\0" + b"id3 " + struct.pack("<I", 3) + b"abc\0"


def _bw64(content: bytes) -> bytes:
    return b"BW64" + content[4:]


def _without_data_size(size: int) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        at = content.index(b"data") + 4
        return content[:4] + struct.pack("<I", size) + content[8:at] + struct.pack("<I", size) + content[at + 4 :]

    return edit


def encodings() -> Iterator[Encoding]:
    """Yield every encoder in every container that ffmpeg can write and that is read, with tags, pictures and pipes."""
    # WAV and its relatives
    yield from _pcm("wav", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", shapes=8)
    yield from _pcm("wav", "pcm_mulaw", "pcm_alaw", shapes=8)
    yield from _pcm("wav", "pcm_s64le")
    yield from _pcm("wav", "adpcm_ima_wav", "adpcm_ms", **LOSSY, **STEREO)
    yield from _pcm("wav", "adpcm_yamaha", "adpcm_swf", rates=(11_025, 22_050, 44_100), **LOSSY, **STEREO)
    yield from _pcm("wav", "libgsm_ms", "g723_1", **TELEPHONE)
    yield from _pcm("wav", "g726", **TELEPHONE)
    yield from _pcm("wav", "g722", rates=(16_000,), channels=(1,), exact=False)
    yield from _pcm("wav", "libmp3lame", "mp2", rates=(16_000, 22_050, 44_100, 48_000), **LOSSY, **STEREO)
    yield from _pcm("wav", "ac3", **AC3)
    yield from _pcm("wav", "wmav2", rates=(44_100, 48_000, 22_050), **LOSSY, **STEREO)
    yield from _pcm("wav", "flac")
    yield Encoding("tags.wav", (*TAGS, "-c:a", "pcm_s16le"), shapes=8)
    yield Encoding("id3.wav", (*TAGS, "-c:a", "pcm_s24le", "-write_bext", "1"))
    yield Encoding("peak.wav", ("-c:a", "pcm_s16le", "-write_peak", "on"), channels=(1, 2))
    yield Encoding("bare.wav", ("-c:a", "pcm_s16le", "-fflags", "+bitexact", "-map_metadata", "-1"))
    yield Encoding("pipe.wav", ("-c:a", "pcm_s16le", "-f", "wav"), pipe=True, shapes=8)
    yield Encoding("pipe24.wav", ("-c:a", "pcm_s24le", "-f", "wav"), pipe=True)
    yield Encoding("pipe-ulaw.wav", ("-c:a", "pcm_mulaw", "-f", "wav"), pipe=True)
    yield Encoding("pipe-ms.wav", ("-c:a", "adpcm_ms", "-f", "wav"), pipe=True, **LOSSY, **STEREO)
    yield Encoding("size0.wav", ("-c:a", "pcm_s16le", "-fflags", "+bitexact"), edit=_without_data_size(0))
    yield Encoding("sizeF.wav", ("-c:a", "pcm_s16le", "-fflags", "+bitexact"), edit=_without_data_size(0xFFFF_FFFF))
    yield Encoding("chunks.wav", ("-c:a", "pcm_s16le"), behind=CHUNKS)
    yield Encoding("chunks8.wav", ("-c:a", "pcm_u8"), behind=CHUNKS)
    yield Encoding("rf64.wav", ("-c:a", "pcm_s16le", "-rf64", "always"), shapes=8)
    yield Encoding("rf64-24.wav", ("-c:a", "pcm_s24le", "-rf64", "always"))
    yield Encoding("bw64.wav", ("-c:a", "pcm_s16le", "-rf64", "always"), edit=_bw64)
    yield from _pcm("w64", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_alaw", padding=7)
    yield from _pcm("w64", "adpcm_ms", **LOSSY, **STEREO)
    # AIFF, AU, CAF and others without compression
    yield from _pcm("aiff", "pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_f64be", shapes=6)
    yield from _pcm("aiff", "pcm_mulaw", "pcm_alaw", "pcm_s16le")
    yield from _pcm("aiff", "adpcm_ima_qt", exact=False, **STEREO)
    yield Encoding("tags.aiff", (*TAGS, "-c:a", "pcm_s16be", "-write_id3v2", "1"))
    yield Encoding("art.aiff", (*TAGS, "-c:a", "pcm_s16be", "-write_id3v2", "1"), art=True)
    yield Encoding("pipe.aiff", ("-c:a", "pcm_s16be", "-f", "aiff"), pipe=True)
    yield from _pcm(
        "au", "pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_f64be", "pcm_mulaw", "pcm_alaw"
    )
    yield Encoding("tags.au", (*TAGS, "-c:a", "pcm_s16be"))
    yield Encoding("pipe.au", ("-c:a", "pcm_s16be", "-f", "au"), pipe=True)
    yield from _pcm(
        "caf", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32be", "pcm_f32le", "pcm_mulaw", "pcm_alaw"
    )
    yield from _pcm("caf", "alac", **STEREO)
    yield from _pcm("caf", "aac", **AAC)
    yield from _pcm("caf", "flac", "adpcm_ima_qt", "libopus", rates=(48_000, 16_000, 44_100), **LOSSY, **STEREO)
    yield Encoding("tags.caf", (*TAGS, "-c:a", "pcm_s16le"))
    yield Encoding("pipe.caf", ("-c:a", "pcm_s16le", "-f", "caf"), pipe=True)
    yield from _pcm("voc", "pcm_u8", "pcm_s16le", "pcm_alaw", channels=(1, 2), exact=False)
    yield from _pcm("ircam", "pcm_s16le", "pcm_f32le", "pcm_mulaw", "pcm_alaw")
    yield from _pcm("sox", "pcm_s32le")
    yield from _pcm("ast", "pcm_s16be_planar", channels=(1, 2), exact=False)
    yield from _pcm("rso", "pcm_u8", channels=(1,))
    # FLAC and other codecs without loss
    for level in ("0", "5", "12"):
        yield Encoding(f"{level}.flac", ("-c:a", "flac", "-compression_level", level), shapes=9)
    yield Encoding("24.flac", ("-c:a", "flac", "-sample_fmt", "s32", "-bits_per_raw_sample", "24"), shapes=8)
    yield Encoding("tags.flac", (*TAGS, "-c:a", "flac"))
    yield Encoding("art.flac", (*TAGS, "-c:a", "flac"), art=True)
    yield Encoding("frames.flac", ("-c:a", "flac", "-frame_size", "1009"))
    yield Encoding("pipe.flac", ("-c:a", "flac", "-f", "flac"), pipe=True)
    yield Encoding("id3v1.flac", ("-c:a", "flac"), behind=ID3V1)
    yield Encoding("id3v2.flac", ("-c:a", "flac"), before=b"ID3\4\0\0\0\0\0\x0a" + bytes(10))
    yield Encoding("flac.oga", (*TAGS, "-c:a", "flac"))
    yield Encoding("flac.ogg", ("-c:a", "flac"), shapes=8)
    yield from _pcm("wv", "wavpack", shapes=6)
    yield Encoding("tags.wv", (*TAGS, "-c:a", "wavpack"))
    yield from _pcm("tta", "tta")
    yield from _pcm("mlp", "mlp", rates=(44_100, 48_000), channels=(1, 2), exact=False)
    yield from _pcm("thd", "truehd", rates=(44_100, 48_000), channels=(1, 2), exact=False)
    # MP3 and MP2
    for name, options in {
        "cbr": ("-b:a", "64k"),
        "abr": ("-b:a", "64k", "-abr", "1"),
        "vbr2": ("-q:a", "2"),
        "vbr9": ("-q:a", "9"),
        "joint": ("-b:a", "32k", "-joint_stereo", "0"),
    }.items():
        for xing in ("0", "1"):
            yield Encoding(
                f"{name}-xing{xing}.mp3", ("-c:a", "libmp3lame", *options, "-write_xing", xing), shapes=7, **MP3
            )
    yield Encoding("reservoir.mp3", ("-c:a", "libmp3lame", "-b:a", "64k", "-reservoir", "0"), **MP3)
    yield Encoding("id3v23.mp3", (*TAGS, "-c:a", "libmp3lame", "-id3v2_version", "3", "-write_id3v1", "1"), **MP3)
    yield Encoding("id3v24.mp3", (*TAGS, "-c:a", "libmp3lame", "-q:a", "4", "-id3v2_version", "4"), **MP3)
    yield Encoding("untagged.mp3", ("-c:a", "libmp3lame", "-id3v2_version", "0", "-write_xing", "0"), **MP3)
    yield Encoding("art.mp3", (*TAGS, "-c:a", "libmp3lame", "-q:a", "4"), art=True, **MP3)
    yield Encoding("art-xing0.mp3", (*TAGS, "-c:a", "libmp3lame", "-q:a", "4", "-write_xing", "0"), art=True, **MP3)
    yield Encoding("pipe.mp3", ("-c:a", "libmp3lame", "-q:a", "4", "-f", "mp3"), pipe=True, **MP3)
    yield Encoding("padded.mp3", ("-c:a", "libmp3lame", "-q:a", "5", "-id3v2_version", "0"), before=bytes(4001), **MP3)
    yield Encoding("junk.mp3", ("-c:a", "libmp3lame", "-id3v2_version", "0"), before=b"HTTP/1.0 200 OK\r\n" * 9, **MP3)
    yield Encoding("behind.mp3", ("-c:a", "libmp3lame", "-q:a", "4"), behind=APE_TAG + ID3V1, **MP3)
    yield Encoding("lyrics.mp3", ("-c:a", "libmp3lame", "-write_xing", "0"), behind=LYRICS3 + ID3V1, **MP3)
    yield Encoding("zeros.mp3", ("-c:a", "libmp3lame"), behind=bytes(5000), **MP3)
    yield Encoding("shine.mp3", ("-c:a", "libshine"), rates=(44_100, 48_000, 16_000), exact=False, **STEREO)
    yield from _pcm("mp2", "mp2", "libtwolame", rates=(16_000, 22_050, 44_100, 48_000), exact=False, **STEREO)
    # Ogg
    for quality in ("-1", "3", "10"):
        yield Encoding(f"{quality}.ogg", (*TAGS, "-c:a", "libvorbis", "-q:a", quality), shapes=7, exact=False)
    yield Encoding("bitrate.ogg", ("-c:a", "libvorbis", "-b:a", "64k"), rates=(44_100, 48_000), exact=False)
    yield Encoding("pages.ogg", ("-c:a", "libvorbis", "-page_duration", "20000"), exact=False)
    yield Encoding("pipe.ogg", ("-c:a", "libvorbis", "-f", "ogg"), pipe=True, exact=False)
    yield Encoding("native.ogg", ("-c:a", "vorbis", "-strict", "-2"), channels=(2,), exact=False)
    for name, options in {
        "vbr": ("-vbr", "on"),
        "cbr": ("-vbr", "off", "-b:a", "24k"),
        "short": ("-frame_duration", "2.5"),
        "long": ("-frame_duration", "60", "-application", "voip"),
    }.items():
        yield Encoding(f"{name}.opus", (*TAGS, "-c:a", "libopus", *options), shapes=7, **OPUS)
    yield Encoding("pipe.opus", ("-c:a", "libopus", "-f", "opus"), pipe=True, **OPUS)
    yield Encoding("51.opus", ("-c:a", "libopus", "-mapping_family", "1"), rates=(48_000,), channels=(6,), exact=False)
    yield from _pcm("spx", "libspeex", rates=(8000, 16_000), channels=(1, 2), exact=False)
    # MP4, QuickTime
    for container in ("m4a", "mp4", "mov", "3gp", "f4v"):
        yield Encoding(f"aac.{container}", (*TAGS, "-c:a", "aac"), shapes=6, **AAC)
    yield Encoding("art.m4a", (*TAGS, "-c:a", "aac"), art=True, **AAC)
    yield Encoding("faststart.m4a", ("-c:a", "aac", "-movflags", "+faststart"), **AAC)
    yield Encoding("fragments.mp4", ("-c:a", "aac", *FRAGMENTS), **AAC)
    yield Encoding("pipe.mp4", ("-c:a", "aac", *FRAGMENTS), pipe=True, **AAC)
    yield from _pcm("m4a", "alac", shapes=6, channels=(1, 2, 6))
    yield from _pcm("mp4", "libopus", **OPUS)
    yield from _pcm("mp4", "flac", "libvorbis", "libmp3lame", rates=(16_000, 22_050, 44_100, 48_000), **LOSSY, **STEREO)
    yield from _pcm("mp4", "ac3", "eac3", **AC3)
    yield from _pcm("mov", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le", "pcm_mulaw", "pcm_alaw", shapes=5)
    yield from _pcm("mov", "adpcm_ima_qt", "alac", **LOSSY, **STEREO)
    # Matroska, WebM
    yield from _pcm("mka", "pcm_s16le", "pcm_s24le", "pcm_f32le", "flac", shapes=5)
    yield from _pcm("mka", "libvorbis", "libmp3lame", "mp2", rates=(16_000, 22_050, 44_100, 48_000), **LOSSY, **STEREO)
    yield from _pcm("mka", "aac", **AAC)
    yield from _pcm("mka", "libopus", **OPUS)
    yield from _pcm("mka", "ac3", "eac3", **AC3)
    yield from _pcm("mka", "wavpack", "tta", "alac", exact=False, **STEREO)
    yield Encoding("opus.webm", (*TAGS, "-c:a", "libopus"), shapes=7, **OPUS)
    yield Encoding("vorbis.webm", (*TAGS, "-c:a", "libvorbis"), exact=False)
    yield Encoding("pipe.webm", ("-c:a", "libopus", "-f", "webm"), pipe=True, **OPUS)
    yield Encoding("live.webm", ("-c:a", "libopus", "-live", "1", "-f", "webm"), pipe=True, **OPUS)
    yield Encoding("pipe.mka", ("-c:a", "flac", "-f", "matroska"), pipe=True)
    # AAC, AC-3 and others in streams of frames, and other containers
    yield Encoding("adts.aac", ("-c:a", "aac"), shapes=7, **AAC)
    yield Encoding("tags.aac", (*TAGS, "-c:a", "aac", "-write_id3v2", "1"), **AAC)
    yield Encoding("behind.aac", (*TAGS, "-c:a", "aac", "-write_apetag", "1"), **AAC)
    yield from _pcm("ac3", "ac3", **AC3)
    yield from _pcm("eac3", "eac3", **AC3)
    yield Encoding("dca.dts", ("-c:a", "dca", "-strict", "-2"), rates=(44_100, 48_000), channels=(1, 2, 6), exact=False)
    yield from _pcm("wma", "wmav1", "wmav2", rates=(22_050, 44_100, 48_000), exact=False, **STEREO)
    yield Encoding("pipe.wma", ("-c:a", "wmav2", "-f", "asf"), pipe=True, rates=(44_100, 48_000), exact=False, **STEREO)
    yield from _pcm("flv", "libmp3lame", "aac", rates=(22_050, 44_100), exact=False, **STEREO)
    yield from _pcm("avi", "pcm_s16le", "libmp3lame", "aac", rates=(22_050, 44_100, 48_000), exact=False, **STEREO)
    yield from _pcm("ts", "aac", "mp2", "libmp3lame", rates=(44_100, 48_000), exact=False, **STEREO)
    yield from _pcm("mpg", "mp2", rates=(44_100, 48_000), exact=False, **STEREO)
    yield from _pcm("nut", "pcm_s16le", "libvorbis", exact=False, **STEREO)
    # The FFmpeg inside PyAV cannot decode FLAC in this container.
    yield from _pcm("nut", "flac", exact=False, refusal="not_audio", **STEREO)
    yield from _pcm("rm", "ac3", rates=(44_100, 48_000), exact=False, **STEREO)
    yield from _pcm("gsm", "libgsm", **TELEPHONE)
    yield from _pcm("adx", "adpcm_adx", exact=False, **STEREO)
    yield from _pcm("g722", "g722", rates=(16_000,), channels=(1,), exact=False)
    yield from _pcm("wtv", "mp2", rates=(44_100, 48_000), exact=False, **STEREO)


@dataclass(frozen=True)
class File:
    """A file to write: how, and of which shape."""

    encoding: Encoding
    samples: int
    rate: int
    channels: int

    @property
    def name(self) -> str:
        return f"{self.samples}-{self.rate}-{self.channels}-{self.encoding.name}"


def files() -> list[File]:
    """Return all files: of every encoding as many shapes as it asks for, of those that its encoder accepts."""
    found = []
    for number, encoding in enumerate(encodings()):
        accepted = [
            (
                samples,
                encoding.rates[number % len(encoding.rates)] if encoding.rates and rate not in encoding.rates else rate,
                channels,
            )
            for samples, rate, channels in SHAPES
            if not encoding.channels or channels in encoding.channels
        ]
        turned = accepted[number % len(accepted) :] + accepted[: number % len(accepted)]
        chosen = dict.fromkeys([accepted[0], *turned])
        found += [File(encoding, *shape) for shape in list(chosen)[: encoding.shapes]]
    return found


@dataclass(frozen=True)
class Verdict:
    """What became of a file. fault: what is wrong; None: nothing. outcome: read, or the kind of its refusal."""

    name: str
    outcome: str
    fault: str | None


def judge(file: File, folder: Path, keep: bool = False) -> Verdict | None:
    """Write a file, read it, and compare it with what ffmpeg decodes; None where ffmpeg cannot write it."""
    path = folder / file.name
    try:
        if not _write(file, path):
            return None
        theirs = _decoded_by_ffmpeg(path)
        if theirs is None or len(theirs.waveform) == 0:  # such as one sample in a codec with blocks
            return None
        try:
            ours = read_recording(path, sample_rate=theirs.rate)
        except AudioError as error:
            right = error.kind == file.encoding.refusal
            return Verdict(file.name, error.kind, None if right else f"refused ({error.kind}): it {error}")
        return Verdict(file.name, "read", _fault(file, ours, theirs))
    finally:
        if not keep:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Decoded:
    """What ffmpeg decodes. waveform: float32 [samples], the mean of the channels."""

    rate: int
    channels: int
    waveform: np.ndarray


def _fault(file: File, ours: Recording, theirs: Decoded) -> str | None:
    rate, channels, samples = theirs.rate, theirs.channels, len(theirs.waveform)
    if file.encoding.refusal is not None:
        return f"read, but {file.encoding.refusal} was expected"
    # libsndfile decodes Opus at the rate of its source, ffmpeg always at 48 kHz.
    same_rate = ours.source_rate == rate or file.encoding.name.endswith(".opus")
    if not same_rate or ours.source_channels != channels:
        return f"{ours.source_channels} × {ours.source_rate} Hz, ffmpeg: {channels} × {rate} Hz"
    tolerance = 0 if file.encoding.exact else LOSSY_SECONDS * rate
    if abs(len(ours.waveform) - samples) > tolerance:
        return f"{len(ours.waveform)} samples, ffmpeg: {samples}"
    if file.encoding.exact and not file.samples <= samples <= file.samples + file.encoding.padding:
        return f"{samples} samples, {file.samples} were written"
    if file.encoding.exact and np.abs(ours.waveform.numpy() - theirs.waveform).max() > TOLERANCE:
        return "other samples than ffmpeg decodes"
    if samples > 5000 and not 0.9 < ours.waveform.std() / theirs.waveform.std() < 1.1:
        return f"{ours.waveform.std() / theirs.waveform.std():.2f} × as loud as ffmpeg decodes it"
    if file.encoding.pipe:
        return ", ".join(flag for flag in ours.flags if flag not in EXPECTED_FLAGS) or None
    return ", ".join(flag for flag in ours.flags if file.samples > 1000 or not flag.startswith(SHORT_FLAGS)) or None


# A FLAC from a pipe says so; and a single sample is constant.
EXPECTED_FLAGS = ("header does not state the length", "constant", "all zeros")
SHORT_FLAGS = ("constant", "all zeros", "offset", "almost silent")


def _write(file: File, path: Path) -> bool:
    """Write a file; return False if ffmpeg refuses it."""
    source, art = path.with_name(f"source-{path.name}.wav"), path.with_name(f"art-{path.name}.png")
    speech = np.resize(_speech(), file.samples)[:, None]
    mixed = speech * np.linspace(1, 0.5, file.channels)[None] * 0.7
    soundfile.write(source, mixed, file.rate, format="WAV", subtype="PCM_16")
    inputs = ["-i", os.fspath(source)]
    try:
        if file.encoding.art:
            made = subprocess.run(
                [*FFMPEG, "-f", "lavfi", "-i", "mandelbrot=size=640x480", "-frames:v", "1", art], capture_output=True
            )
            assert made.returncode == 0, made.stderr
            inputs += [
                "-i",
                os.fspath(art),
                "-map",
                "0:a",
                "-map",
                "1:v",
                "-c:v",
                "copy",
                "-disposition:v",
                "attached_pic",
            ]
        output = "pipe:1" if file.encoding.pipe else os.fspath(path)
        done = subprocess.run([*FFMPEG, *inputs, *file.encoding.arguments, output], capture_output=True)
    finally:
        source.unlink()
        art.unlink(missing_ok=True)
    if done.returncode != 0:
        return False
    content = done.stdout if file.encoding.pipe else path.read_bytes()
    if file.encoding.edit is not None:
        content = file.encoding.edit(content)
    path.write_bytes(file.encoding.before + content + file.encoding.behind)
    return len(content) > 0


def _decoded_by_ffmpeg(path: Path) -> Decoded | None:
    """Return what ffmpeg decodes; None if it cannot."""
    done = subprocess.run(
        [*FFMPEG, "-i", path, "-map", "0:a:0", "-f", "wav", "-c:a", "pcm_f32le", "-fflags", "+bitexact", "pipe:1"],
        capture_output=True,
    )
    at = done.stdout.find(b"data")
    if done.returncode != 0 or at < 0:
        return None
    channels, rate = struct.unpack("<HI", done.stdout[22:28])
    samples = np.frombuffer(done.stdout, np.float32, (len(done.stdout) - at - 8) // 4, at + 8)
    return Decoded(rate, channels, samples[: len(samples) // channels * channels].reshape(-1, channels).mean(1))


@lru_cache
def _speech() -> np.ndarray:
    """Return half a minute of speech, float64 [samples]."""
    paths = sorted((ROOT / "data" / "speech").rglob("*.flac"))
    return np.concatenate([soundfile.read(path)[0] for path in paths])[:500_000]


def judge_all(chosen: Sequence[File], folder: Path, *, threads: int = 2, keep: bool = False) -> Iterator[Verdict]:
    """Yield a verdict on each file that ffmpeg can write."""
    with ThreadPoolExecutor(threads) as pool:
        for verdict in pool.map(lambda file: judge(file, folder, keep), chosen):
            if verdict is not None:
                yield verdict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of a name")
    parser.add_argument("--keep", type=Path, help="a folder for the files")
    options = parser.parse_args()
    chosen = [file for file in files() if options.only in file.name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        verdicts = []
        for verdict in judge_all(chosen, folder, keep=options.keep is not None):
            verdicts.append(verdict)
            if verdict.fault is not None:
                print(f"{verdict.name}: {verdict.fault}", file=sys.stderr, flush=True)
    faults = [vars(verdict) for verdict in verdicts if verdict.fault is not None]
    counts = Counter(verdict.outcome for verdict in verdicts)
    print(
        json.dumps(
            {
                "written": len(verdicts),
                "not written": len(chosen) - len(verdicts),
                "outcomes": counts,
                "faults": faults,
            },
            indent=1,
            ensure_ascii=False,
        )
    )
    sys.exit(bool(faults))
