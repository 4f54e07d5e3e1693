"""The one form in which recordings and what is known about them go through the house."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

AUDIO_EXTENSIONS = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .caf .au .snd .sph .nist .w64 .rf64 "
    ".m4a .mp4 .webm .mkv .mka .mov .aac .wma .amr .3gp".split()
)


class CorpusError(ValueError):
    """What was named as audio cannot be listed. The text says what was expected, found, and the way out."""


class Content(Protocol):
    """Gives the bytes of a recording that is no file of its own, each time anew, in any thread.

    Small, and picklable: it says where the bytes are, for other processes read them too. size: bytes, about; 0 where
    that is not known. What is wrong is a ValueError whose text is the end of a sentence that begins with the recording.
    """

    @property
    def size(self) -> int: ...

    def __call__(self) -> bytes: ...

    def state(self) -> str | None:
        """What tells this state of the recording from others, without reading it; None where it cannot be had."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One recording, or a part of one.

    id: a relative path with `/` between its parts, unique in its corpus. path: the file.
    offset, duration: seconds, of the part that is meant; duration None: to the end.
    text: what is said. label: what it is (a class). speaker: who speaks. split: "train", "valid" or "test".
    content: of a recording that is no file of its own (a member of a tar shard, a row of a data set); `path` is then
        a name for it, and nothing to open.
    """

    id: str
    path: Path
    offset: float = 0.0
    duration: float | None = None
    text: str | None = None
    label: str | None = None
    speaker: str | None = None
    split: str | None = None
    content: Content | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Corpus:
    """rows: as in the manifest or the shards, or sorted by id. skipped: files that are no audio, by extension."""

    rows: tuple[Row, ...]
    skipped: Counter[str] = field(default_factory=Counter)
