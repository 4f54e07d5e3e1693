"""What a file about one recording holds: its text, and tiers of words or labels with their times."""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from w2v_attn.corpus.rows import AUDIO_EXTENSIONS
from w2v_attn.transcription.outputs import Word
from w2v_attn.transcription.sequential_times import sequential_times

# Seconds of the shortest interval in formats that have no intervals of length 0.
SHORTEST = 0.001


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The text of a recording, and its tiers.

    Attributes:
        id: The id of the recording.
        path: Its file.
        duration: Its length in seconds.
        text: The text on one line; of other heads what `as_text` of their output returns.
        tiers: Name -> words, phones, labels, … in the order of time. The first tier, with its joiners, is the text.
        speaker: Who speaks, if known.
        channel: Number of the channel of the file, from 0; None: all of them are mixed.
        is_label: Whether the text is a class of the recording, and not what is said.
    """

    id: str
    path: Path
    duration: float
    text: str
    tiers: Mapping[str, tuple[Word, ...]]
    speaker: str | None = None
    channel: int | None = None
    is_label: bool = False

    @property
    def nist_channel(self) -> str:
        """The channel as NIST's formats count it, from 1, which is also that of a mixed recording."""
        return str(1 + (self.channel or 0))

    @property
    def words(self) -> tuple[Word, ...]:
        """The first tier; of labels those of all tiers, in the order of time."""
        if self.is_label:
            return tuple(sorted((word for tier in self.tiers.values() for word in tier), key=lambda word: word.start))
        return next(iter(self.tiers.values()), ())


def name_of(id: str) -> str:
    """Return the name of a recording for formats whose fields have no spaces: without the extension of its file."""
    path = PurePosixPath(id)
    return field(str(path.with_suffix("")) if path.suffix.lower() in AUDIO_EXTENSIONS else id)


def field(text: str) -> str:
    """Return a text without white space, for formats whose fields are separated by it; an empty one is <NA>."""
    return "_".join(one_line(text).split()) or "<NA>"


def one_line(text: str) -> str:
    """Return a text without line breaks, tabs and control characters, which end a field in most formats."""
    return "".join(character for character in " ".join(text.split()) if unicodedata.category(character) != "Cc")


def intervals(words: tuple[Word, ...]) -> Iterator[tuple[float, float, str]]:
    """Yield start, end and text of each word, in order, without overlap and none of length 0."""
    times = sequential_times([(word.start, word.end) for word in words], shortest=SHORTEST)
    for (start, end), word in zip(times, words, strict=True):
        yield start, end, one_line(word.word)
