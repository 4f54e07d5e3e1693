"""Makes the speech of this folder with espeak-ng: `python data/make_speech.py` writes data/speech/.

Every clip is synthetic. Texts, voices, speeds and pitches come from a seed: the same espeak-ng makes the same clips.
Needs the program espeak-ng (Debian: apt-get install espeak-ng).
"""

import csv
import io
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
FOLDER = Path(__file__).parent / "speech"

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
        text = rng.choice(SENTENCES)
        for slot, choices in (
            ("{thing}", THINGS),
            ("{colour}", COLOURS),
            ("{digit}", DIGITS),
            ("{direction}", ["left", "right", "up", "down"]),
        ):
            while slot in text:
                text = text.replace(slot, rng.choice(choices), 1)
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants)}"
    return Utterance(text, voice, speed=rng.randrange(120, 200), pitch=rng.randrange(25, 75))


def main() -> None:
    """Writes the clips and their manifest: a folder for each voice, and clips.csv beside them."""
    FOLDER.mkdir(exist_ok=True)
    rows = []
    for number, utterance in enumerate(utterances(36, HELD_OUT_VARIANTS, seed=7)):
        words = "-".join(utterance.text.split()[:4])
        path = Path(utterance.voice) / f"{number:02d}-{words}.flac"
        (FOLDER / path).parent.mkdir(exist_ok=True)
        flac = io.BytesIO()
        soundfile.write(flac, utterance.speak(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        (FOLDER / path).write_bytes(flac.getvalue())
        rows.append((path.as_posix(), utterance.text, utterance.voice, utterance.speed, utterance.pitch))
    with (FOLDER / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "text", "speaker", "speed", "pitch"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
