"""Praat's TextGrid files -> their interval tiers, from the long and the short text format.

Praat reads only the free-standing numbers, the quoted texts and the flags of a text file; all other words are comments.
So one reader handles both formats.

Source: P. Boersma and D. Weenink, Praat's manual, "TextGrid file formats".
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from w2v_attn.features.feature_errors import FeatureSetError

EXTENSION = ".textgrid"
INTERVALS = "IntervalTier"
HEADERS = ("ooTextFile", "ooTextFile short")
# A text, in which a quote is doubled; a comment; a flag; or a word. Of the words only numbers count, and only if they
# are free-standing: the index of an item, [1], does not.
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|!.*|(<exists>)|([^\s"]+)')
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?%?")

# Start and end in seconds, and the text.
Interval = tuple[float, float, str]


def read_textgrid(path: Path) -> dict[str, list[Interval]]:
    """Return interval tiers by name, each in the order of the file; point tiers are left out.

    Raises:
        FeatureSetError: the file is not a TextGrid, is truncated, or has two tiers of one name.
        OSError: it cannot be read.
    """
    tokens = _tokens(_text(path))
    tiers: dict[str, list[Interval]] = {}
    try:
        if next(tokens) not in HEADERS or next(tokens) != "TextGrid":
            raise FeatureSetError(f"{path} is not a TextGrid in Praat's text format: save it as a text file")
        _skip(tokens, 3)  # start, end, and the flag that there are tiers
        for _ in range(int(_number(tokens))):
            kind, name = next(tokens), str(next(tokens))
            _skip(tokens, 2)
            count = int(_number(tokens))
            if kind != INTERVALS:
                _skip(tokens, 2 * count)
                continue
            if name in tiers:
                raise FeatureSetError(f"{path} has two tiers named {name!r}")
            tiers[name] = [(_number(tokens), _number(tokens), str(next(tokens))) for _ in range(count)]
    except (StopIteration, _NumberError) as error:
        raise FeatureSetError(f"{path} is not a complete TextGrid: {str(error) or 'it ends too early'}") from error
    return tiers


class _NumberError(ValueError):
    pass


def _skip(tokens: Iterator[str | float], count: int) -> None:
    for _ in range(count):
        next(tokens)


def _number(tokens: Iterator[str | float]) -> float:
    token = next(tokens)
    if not isinstance(token, float):
        raise _NumberError(f"expected a number, found {token!r}")
    return token


def _tokens(text: str) -> Iterator[str | float]:
    for found in _TOKEN.finditer(text):
        if found[1] is not None:
            yield found[1].replace('""', '"')
        elif found[2] is not None:
            yield found[2]
        elif found[3] is not None and _NUMBER.fullmatch(found[3]):
            yield float(found[3])


def _text(path: Path) -> str:
    """Return the text of a file: Praat writes UTF-16 if a text has more than ASCII, other tools UTF-8."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise FeatureSetError(f"{path} is neither UTF-8 nor UTF-16 ({error.reason})") from error
