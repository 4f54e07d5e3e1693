"""Makes the speech of this folder with espeak-ng.

`python data/make_speech.py` writes data/speech/, the clips that commands are tried on, and data/lessons/, which a model
is fine-tuned on.
`python data/make_speech.py FOLDER` writes there the speech that the small checkpoint of data/tiny/ is trained on.

Every clip is synthetic. Texts, voices, speeds and pitches come from a seed: the same espeak-ng makes the same clips.
Needs the program espeak-ng (Debian: apt-get install espeak-ng).
"""

import csv
import io
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
FOLDER = Path(__file__).parent / "speech"
LESSONS_FOLDER = Path(__file__).parent / "lessons"

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
THINGS = ["light", "door", "window", "music", "radio", "heater"]
COLOURS = ["red", "green", "blue", "yellow"]
WORDS = ["yes", "no", "stop", "go", "left", "right", "up", "down", "on", "off", "please", "now"]
SENTENCES = (
    "turn the {thing} on",
    "turn the {thing} off",
    "please open the {thing}",
    "close the {thing} now",
    "stop the {thing}",
    "the {thing} is {colour}",
    "call {digit} {digit} {digit}",
    "go {direction} then {direction}",
    "set the {thing} to {digit}",
    "play {colour} {digit}",
)

# What the lessons say: other words, so that a model which knows the sentences above has something to learn.
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
MONTHS = ["january", "march", "april", "june", "august", "october", "december"]
CITIES = ["paris", "london", "berlin", "madrid", "vienna", "lisbon"]
WEATHER = ["sunny", "cloudy", "windy", "raining", "snowing"]
FOOD = ["bread", "cheese", "coffee", "apples", "honey", "water"]
LESSONS = (
    "meet me on {day}",
    "remind me in {month}",
    "it is {weather} in {city}",
    "we fly to {city} on {day}",
    "buy {food} and {food}",
    "how much is the {food}",
    "is it {weather} in {month}",
    "wake me before {day}",
)
SLOTS = {
    "{thing}": THINGS,
    "{colour}": COLOURS,
    "{digit}": DIGITS,
    "{direction}": ["left", "right", "up", "down"],
    "{day}": DAYS,
    "{month}": MONTHS,
    "{city}": CITIES,
    "{weather}": WEATHER,
    "{food}": FOOD,
}

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
VARIANTS = ("m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f4")
# Voices that a checkpoint trained on this speech never hears; the clips that are shipped are spoken by them.
HELD_OUT_VARIANTS = ("m5", "m8", "f3", "f5")


@dataclass(frozen=True)
class Utterance:
    """What is said, and how. speed: words a minute; pitch: 0 to 99."""

    text: str
    voice: str
    speed: int
    pitch: int

    def speak(self) -> np.ndarray:
        """float32 [samples] at 16 kHz, in [-1, 1]."""
        command = ["espeak-ng", "-v", self.voice, "-s", str(self.speed), "-p", str(self.pitch), "--stdout", self.text]
        spoken = subprocess.run(command, check=True, capture_output=True).stdout
        # Written to a pipe, the header cannot know the length; the samples are what follows its 44 bytes.
        wave = np.frombuffer(spoken[44:], dtype="<i2").astype(np.float32) / 32768
        rate = int.from_bytes(spoken[24:28], "little")
        return soxr.resample(wave, rate, SAMPLE_RATE, "HQ").clip(-1, 1)


def utterances(count: int, variants: tuple[str, ...], seed: int) -> list[Utterance]:
    """`count` random things to say with these voice variants: digits, strings of digits, words and sentences."""
    rng = random.Random(seed)
    return [_utterance(rng, variants) for _ in range(count)]


def _utterance(rng: random.Random, variants: tuple[str, ...]) -> Utterance:
    kind = rng.random()
    if kind < 0.35:
        text = " ".join(rng.choices(DIGITS, k=rng.choice((1, 1, 2, 3, 4, 5))))
    elif kind < 0.5:
        text = " ".join(rng.choices(WORDS + COLOURS + THINGS, k=rng.choice((1, 1, 2))))
    else:
        text = _filled(rng.choice(SENTENCES), rng)
    return _spoken(text, rng, variants)


def lessons(count: int, variants: tuple[str, ...], seed: int) -> list[Utterance]:
    """`count` random sentences of the lessons, said with these voice variants."""
    rng = random.Random(seed)
    return [_spoken(_filled(rng.choice(LESSONS), rng), rng, variants) for _ in range(count)]


def _filled(sentence: str, rng: random.Random) -> str:
    for slot, choices in SLOTS.items():
        while slot in sentence:
            sentence = sentence.replace(slot, rng.choice(choices), 1)
    return sentence


def _spoken(text: str, rng: random.Random, variants: tuple[str, ...]) -> Utterance:
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants)}"
    return Utterance(text, voice, speed=rng.randrange(120, 200), pitch=rng.randrange(25, 75))


def write(rows: Sequence[tuple[str, Utterance, str]], folder: Path, manifest: str, form: tuple[str, str]) -> None:
    """Speaks (path without extension, what, split) of each row into `folder`, beside a CSV manifest.

    form: libsndfile's format and subtype.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extension = "opus" if form[1] == "OPUS" else "flac"
    with ThreadPoolExecutor(2) as pool:  # espeak-ng runs in processes of its own
        waves = pool.map(lambda row: row[1].speak(), rows)
        with (folder / manifest).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "text", "speaker", "split", "speed", "pitch"))
            for (name, utterance, split), wave in zip(rows, waves, strict=True):
                path = folder / f"{name}.{extension}"
                path.parent.mkdir(parents=True, exist_ok=True)
                sound = io.BytesIO()
                soundfile.write(sound, wave, SAMPLE_RATE, format=form[0], subtype=form[1])
                path.write_bytes(sound.getvalue())
                relative = path.relative_to(folder).as_posix()
                writer.writerow((relative, utterance.text, utterance.voice, split, utterance.speed, utterance.pitch))


def main() -> None:
    """Writes the speech of this folder; into a folder that is named, what a checkpoint is trained on from scratch."""
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        train, valid = utterances(6000, VARIANTS, seed=1), utterances(200, HELD_OUT_VARIANTS, seed=2)
        rows = [(f"train/{n:04d}", u, "train") for n, u in enumerate(train)]
        rows += [(f"valid/{n:04d}", u, "valid") for n, u in enumerate(valid)]
        write(rows, folder, "speech.csv", ("FLAC", "PCM_16"))
        return
    clips = utterances(36, HELD_OUT_VARIANTS, seed=7)
    named = [(f"{u.voice}/{n:02d}-{'-'.join(u.text.split()[:4])}", u, "") for n, u in enumerate(clips)]
    write(named, FOLDER, "clips.csv", ("FLAC", "PCM_16"))
    train, valid = lessons(320, VARIANTS, seed=11), lessons(80, HELD_OUT_VARIANTS, seed=12)
    rows = [(f"train/{n:03d}", u, "train") for n, u in enumerate(train)]
    rows += [(f"held-out/{n:03d}", u, "valid" if n < 40 else "test") for n, u in enumerate(valid)]
    write(rows, LESSONS_FOLDER, "lessons.csv", ("OGG", "OPUS"))


if __name__ == "__main__":
    main()
