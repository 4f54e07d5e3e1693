"""`Row` and `Corpus`: the recordings of any source, and what is known about them."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from w2v_attn.run_error import RecordingError

AUDIO_EXTENSIONS = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .caf .au .snd .sph .nist .w64 .rf64 "
    ".m4a .mp4 .webm .mkv .mka .mov .aac .wma .amr .3gp".split()
)


class CorpusError(ValueError):
    """The error of a corpus that cannot be listed. The text says what was expected, what was found, and what to do."""


class Content(Protocol):
    """The encoded bytes of a recording that is not a file of its own: a member of a tar shard, a row of a data set.

    Each call reads the bytes again, in any thread. It is small and picklable, because it holds only where
    the bytes are: other processes read them too. It raises a ValueError whose text completes a sentence that begins
    with the name of the recording.
    """

    @property
    def size(self) -> int:
        """Approximate number of bytes; 0 where it is unknown."""
        ...

    def __call__(self) -> bytes: ...

    def state(self) -> str | None:
        """Return what distinguishes this state of the recording from others, without reading it; None if unknown."""
        ...


@dataclass(frozen=True, slots=True)
class Unusable:
    """The content of a recording that listing found to be unusable. A run reports it as failed, with this reason."""

    reason: str
    size: int = 0

    def __call__(self) -> bytes:
        raise RecordingError(self.reason, kind="bad_row")

    def state(self) -> str | None:
        return None


@dataclass(frozen=True, slots=True)
class Row:
    """One recording, or a segment of one.

    Attributes:
        id: A relative path with `/` between its parts, unique in its corpus.
        path: The file; where there is `content`, a name for it, which cannot be opened.
        offset: Start of the segment, in seconds.
        duration: Length of the segment, in seconds; None: to the end.
        text: The transcript.
        label: The class.
        speaker: Who speaks.
        split: "train", "valid" or "test".
        content: The bytes of a recording that is not a file of its own.
        channel: The channel of the file, see `audio.channels`; None: that of the run.
        line: Its line in the list, from 1; None where there are no lines.
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
    channel: str | int | None = None
    line: int | None = field(default=None, compare=False, repr=False)

    @property
    def location(self) -> str:
        """The path or the URL of the recording, for people."""
        return getattr(self.content, "public_url", None) or os.fspath(self.path)

    @property
    def beginning(self) -> tuple[str, float]:
        """The file, and where in it the recording begins: rows that share it hold the same speech, in any channel."""
        return os.path.abspath(self.path), self.offset

    @property
    def unusable_reason(self) -> str | None:
        """Why listing found the row to be unusable; None if it did not."""
        return self.content.reason if isinstance(self.content, Unusable) else None


def channel_id(id: str, channel: str | int | None) -> str:
    """Return the id of one channel of a recording, such as a.wav@left; that of the recording where it names none."""
    return id if channel is None else f"{id}@{channel}"


@dataclass(frozen=True)
class Corpus:
    """The rows of a folder, a manifest, shards or a data set.

    Attributes:
        rows: In the order of the manifest or the shards; those of a folder are sorted by id.
        skipped: Number of files that are not audio, by extension.
    """

    rows: tuple[Row, ...]
    skipped: Counter[str] = field(default_factory=Counter)
