"""Damages recordings in every way that comes to mind, reads them in subprocesses, and says what went wrong in silence.

  PYTHONPATH=tests python tests/stress/fuzzing.py --count 20000     the bundled speech in every format: one minute
  PYTHONPATH=tests python tests/stress/fuzzing.py --more recordings --seed 1         and real files of a folder

What must not happen: a crash, a hang, memory without bound, samples that are no numbers, and **silent wrong output**: a
recording that is accepted without a remark, though it is neither what was recorded nor what the damaged file says.
Who knows what that is:

- FLAC and Ogg have checksums: what is accepted must be what was recorded.
- WAV has none: it must be what a second reader of WAV (wavs.py) finds in the file.
- MP3, AAC in MP4 and SPHERE have none either, and decoders guess what they cannot read. What differs there is counted
  as `undetectable`, and must not be shorter: but for MP3 that are cut exactly between two frames, and say nowhere how
  many there were.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
import torch
from wavs import read_wav

from w2v_attn.audio.decoder_subprocess import SubprocessDecoder
from w2v_attn.audio.read_audio import AudioError, Recording, read_recording

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT, MEMORY_GB, MAX_DURATION = 10.0, 0.3, 120.0
# Seconds: more than is lost where an MP3's numbers are damaged, which say how much of its ends is no sound.
SHORTER = 0.3
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "ulaw.wav": ("WAV", "ULAW"),
    "wavex": ("WAVEX", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "24.flac": ("FLAC", "PCM_24"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


@dataclass(frozen=True)
class Seed:
    """A healthy file, and what is read from it. kind: wav, flac, ogg, mp3 or other."""

    name: str
    content: bytes
    kind: str
    recording: Recording


def seeds(more: Path | None) -> list[Seed]:
    """Real speech in every format, at several rates, mono and stereo; and the files of a folder."""
    clips = sorted((ROOT / "data" / "speech").rglob("*.flac"))
    files = {}
    for number, (name, (kind, subtype)) in enumerate(FORMATS.items()):
        for rate, channels in ((16_000, 1), (48_000 if "opus" in name else 44_100, 2), (8000, 1)):
            wave = np.concatenate([soundfile.read(path)[0] for path in clips[3 * number : 3 * number + 2]])
            samples = wave if channels == 1 else np.stack([wave, wave / 2], 1)
            written = io.BytesIO()
            soundfile.write(written, samples, rate, format=kind, subtype=subtype)
            files[f"{rate}-{channels}.{name}"] = written.getvalue()
    lessons = sorted((ROOT / "data" / "lessons" / "held-out").glob("*0.opus"))
    files |= {path.name: path.read_bytes() for path in lessons[:3]}
    files["16000.m4a"] = _m4a(wave)
    if more is not None:
        files |= {
            path.name: path.read_bytes()
            for path in sorted(more.rglob("*"))
            if path.is_file() and path.stat().st_size < 4e6
        }
    return [seed for name, content in files.items() if content and (seed := _seed(name, content))]


def _m4a(wave: np.ndarray) -> bytes:
    try:
        import av
    except ImportError:
        return b""
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024].astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def _seed(name: str, content: bytes) -> Seed | None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            recording = read_recording(file.name, max_duration=MAX_DURATION)
        except AudioError:
            return None
    magic = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}
    kind = magic.get(content[:4], "mp3" if content[:3] == b"ID3" or content[:1] == b"\xff" else "other")
    return Seed(name, content, kind, recording)


# ------------------------------------------------------------------------------------------------- damages

EDGES = [0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def flip_bits(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    for _ in range(chance.choice([1, 1, 1, 2, 5, 50])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def flip_a_bit_of_the_header(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    content[chance.randrange(min(128, len(content)))] ^= 1 << chance.randrange(8)


def edit_a_field_of_the_header(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    width, order = chance.choice([1, 2, 4, 8]), chance.choice(["little", "big"])
    at = chance.randrange(min(160, len(content) - 8))
    now = int.from_bytes(content[at : at + width], order)
    value = chance.choice([*EDGES, now + 1, now - 1, now * 2, now // 2]) % (1 << 8 * width)
    content[at : at + width] = value.to_bytes(width, order)


def cut(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    del content[chance.randrange(1, len(content)) :]


def cut_a_little(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    del content[-chance.randrange(1, 64) :]


def insert(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    at, length = chance.randrange(len(content)), chance.choice([1, 2, 3, 17, 512, 4096])
    content[at:at] = chance.choice([bytes(length), chance.randbytes(length)])


def remove(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    at = chance.randrange(len(content))
    del content[at : at + chance.choice([1, 2, 3, 17, 512, 4096])]


def overwrite(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    at, length = chance.randrange(len(content)), chance.choice([4, 64, 512, 4096])
    length = len(content[at : at + length])
    content[at : at + length] = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])


def swap_blocks(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    length = chance.choice([16, 512, 4096])
    a, b = (chance.randrange(max(1, len(content) - length)) for _ in range(2))
    content[a : a + length], content[b : b + length] = content[b : b + length], content[a : a + length]


def double_a_block(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    at, length = chance.randrange(len(content)), chance.choice([16, 512, 4096])
    content[at:at] = content[at : at + length]


def splice_another_in(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    other = chance.choice(others).content
    start, length, at = chance.randrange(len(other)), chance.choice([64, 1024, 16_384]), chance.randrange(len(content))
    content[at : at + chance.choice([0, length])] = other[start : start + length]


def another_behind_it(content: bytearray, chance: random.Random, others: list[Seed]) -> None:
    content += chance.choice(others).content


DAMAGES: list[Callable[[bytearray, random.Random, list[Seed]], None]] = [
    flip_bits,
    flip_a_bit_of_the_header,
    edit_a_field_of_the_header,
    cut,
    cut_a_little,
    insert,
    remove,
    overwrite,
    swap_blocks,
    double_a_block,
    splice_another_in,
    another_behind_it,
]


def damaged(all_seeds: list[Seed], seed: int, count: int) -> Iterator[tuple[Seed, str, bytes]]:
    """(what it was, what was done, what it is now). Each is made of its own number, so one can be made again."""
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        whole = all_seeds[number % len(all_seeds)]
        content, done = bytearray(whole.content), []
        for damage in chance.sample(DAMAGES, chance.choice([1, 1, 1, 2])):
            if len(content) > 16:
                damage(content, chance, all_seeds)
                done.append(damage.__name__)
        yield whole, " + ".join(done), bytes(content)


# ------------------------------------------------------------------------------------------------- verdicts


def verdict(whole: Seed, done: str, content: bytes, found: Recording) -> str:
    """What to call a recording that was accepted; what begins with `wrong` must not be."""
    if not bool(torch.isfinite(found.waveform).all()):
        return "wrong: not finite"
    if not 0 < found.duration <= MAX_DURATION:
        return "wrong: length"
    if content[:4] == b"OggS" and content.count(b"OggS\0\x02") > 1:
        return all_recordings(content, found)
    same_form = (found.source_rate, found.source_channels) == (
        whole.recording.source_rate,
        whole.recording.source_channels,
    )
    if same_form and torch.equal(found.waveform, whole.recording.waveform):
        return "accepted: as recorded"
    if content == whole.content:
        return "wrong: not the same twice"
    if found.flags:
        return "accepted: with a remark"
    if content[:4] in (b"RIFF", b"RIFX"):
        return as_wav_says(content, found)
    if content[:4] in (b"fLaC", b"OggS"):
        return f"wrong: samples of a {content[:4].decode()} that were not recorded"
    if found.duration < whole.recording.duration - SHORTER and "cut" not in done:
        return "wrong: sound is missing"
    return "accepted: undetectable"


def all_recordings(content: bytes, found: Recording) -> str:
    """Whether an Ogg with several recordings one after the other was read to the end of the last."""
    starts = [at for at in range(len(content)) if content.startswith(b"OggS\0\x02", at)]
    parts = [content[start:end] for start, end in pairwise([*starts, len(content)])]
    try:
        seconds = sum(soundfile.info(io.BytesIO(part)).duration for part in parts)
    except soundfile.LibsndfileError:
        return "wrong: one of several recordings cannot be read"
    same = abs(found.duration - seconds) < 0.01
    return "accepted: all of several recordings" if same else "wrong: some of several recordings"


def as_wav_says(content: bytes, found: Recording) -> str:
    """Whether a second reader of WAV finds the same in it."""
    wave = read_wav(content)
    if wave is None:
        return "wrong: nothing that the WAV says"
    rate, samples = wave
    if (found.source_rate, found.source_channels) != (rate, samples.shape[1]):
        return "wrong: another form than the WAV says"
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:  # our samples, on the way that all take from there
        soundfile.write(file.name, samples.astype(np.float32), rate, format="WAV", subtype="FLOAT")
        again = read_recording(file.name, max_duration=MAX_DURATION).waveform
    same = again.shape == found.waveform.shape and torch.allclose(again, found.waveform, rtol=1e-5, atol=1e-6)
    return "accepted: as the WAV says" if same else "wrong: other samples than the WAV says"


def fuzz(
    all_seeds: list[Seed], *, seed: int, count: int, threads: int = 2, keep: Path | None = None
) -> dict[str, object]:
    """Counts of what became of so many damaged files; and what must not be, with the number that makes it again."""
    began = time.monotonic()
    by_kind: dict[str, Counter[str]] = {}
    wrong: list[dict[str, object]] = []
    slowest = 0.0

    def read(case: tuple[int, tuple[Seed, str, bytes]]) -> tuple[str, float]:
        _, (whole, done, content) = case
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(content)
            file.flush()
            started = time.monotonic()
            try:
                found = decoder.read_recording(file.name, sample_rate=16_000, max_duration=MAX_DURATION)
            except AudioError as error:
                text = str(error)
                for sign in ("crashes its decoder", "took longer", "takes more than"):
                    if sign in text:
                        return f"wrong: {text}", time.monotonic() - started
                return f"refused: {' '.join(text.split()[:3])}", time.monotonic() - started
            return verdict(whole, done, content, found), time.monotonic() - started

    cases = enumerate(damaged(all_seeds, seed, count))
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(SubprocessDecoder(timeout=TIMEOUT, memory_gb=MEMORY_GB)) as decoder,
        ThreadPoolExecutor(threads) as pool,
    ):
        while block := [case for case, _ in zip(cases, range(500), strict=False)]:
            for (number, (whole, done, content)), (said, seconds) in zip(block, pool.map(read, block), strict=True):
                by_kind.setdefault(whole.kind, Counter())[said] += 1
                slowest = max(slowest, seconds)
                if said.startswith("wrong"):
                    wrong.append({"number": number, "file": whole.name, "damage": done, "what": said})
                    if keep is not None:
                        (keep / f"{seed}-{number}-{whole.name}").write_bytes(content)
    return {
        "inputs": count,
        "seconds": round(time.monotonic() - began, 1),
        "slowest": round(slowest, 2),
        "found": {kind: dict(counts.most_common()) for kind, counts in sorted(by_kind.items())},
        "wrong": wrong,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", type=Path, help="a folder of real files beside those of data/")
    parser.add_argument("--keep", type=Path, help="a folder for the files that something was wrong with")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    result = fuzz(seeds(options.more), seed=options.seed, count=options.count, keep=options.keep)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["wrong"]))
