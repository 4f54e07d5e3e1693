"""`ListFormat`: the interface of the formats of data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from w2v_attn.corpus.columns import Columns
from w2v_attn.corpus.rows import Corpus


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What the user says about a list.

    Attributes:
        root: The folder that paths are relative to; None: what is usual for the format, mostly the list's own.
        columns: Which column is what.
        url: What paths are relative to where the list was fetched.
    """

    root: Path | None = None
    columns: Columns = field(default_factory=Columns)
    url: str | None = None


@dataclass(frozen=True)
class ListFormat:
    """A format of data sets: a file that lists recordings, or a folder.

    Attributes:
        name: As in messages and in the documentation.
        recognises: Whether a path that exists is of this format; formats further down the registry are not asked then.
        read: Returns its rows. A row that cannot be used becomes one with `Unusable` content. Raises CorpusError where
            no row can be understood.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ListOptions], Corpus]
