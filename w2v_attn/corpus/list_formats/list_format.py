"""`ListFormat`: the interface of the formats of data sets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from w2v_attn.corpus.rows import Corpus


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What the user says about a list.

    Attributes:
        root: The folder that paths are relative to; None: what is usual for the format, mostly the list's own.
    """

    root: Path | None = None


@dataclass(frozen=True)
class ListFormat:
    """A format of data sets: a file that lists recordings, or a folder.

    Attributes:
        name: As in messages and in the documentation.
        recognises: Whether a path that exists is of this format; formats further down the registry are not asked then.
        read: Returns its rows. Raises CorpusError where it cannot be understood.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ListOptions], Corpus]
