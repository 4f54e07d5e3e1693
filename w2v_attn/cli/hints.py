"""`hints`: lines under the error of a command, with what its words may have meant."""

import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from w2v_attn.cli.former_keys import FORMER_CHOICES
from w2v_attn.cli.other_tools import OTHER_CHOICES

CHOICES = {**OTHER_CHOICES, **FORMER_CHOICES}


def hints(words: Sequence[str], error: object) -> str:
    """Return the names of choices and of existing files that are close to what is given; empty where none is.

    Args:
        words: Those behind the command.
        error: What is wrong; a path counts only if it is named there.
    """
    meant = [CHOICES[given] for given in words if given in CHOICES]
    meant += [path for value in _values(words) if value in str(error) for path in _similar_path(value)]
    return "".join(f"\nDid you mean {choice}?" for choice in meant)


def _values(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        key, equals, value = word.partition("=")
        yield value if equals and not os.path.lexists(key) else word


def _similar_path(value: str) -> list[str]:
    """Return the most similar name in the folder of a path that does not exist, at most one."""
    path = os.path.expanduser(value.rstrip("/"))
    folder, name = os.path.split(path)
    if not name or os.path.lexists(path) or not os.path.isdir(folder or "."):
        return []
    near = get_close_matches(name, os.listdir(folder or "."), 1, 0.7)
    return [os.path.join(folder, found) for found in near]
