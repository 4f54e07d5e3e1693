"""Cues of subtitles: words with times -> short texts of at most two lines, each with the time when it is shown.

The cues of a recording are chosen together: among all divisions that keep the limits, the one with the lowest cost is
found by dynamic programming. A cue costs 1, so that there are few; a break costs up to 1 more where neither a pause nor
punctuation is, a pause within a cue up to 1 more and above PAUSE seconds more than that, and a cue that is shown for
less than a second up to 1 more. Cues of about the same width cost a little less than a long and a short one.

Width is counted in columns, as on a terminal: a wide character of Chinese, Japanese or Korean takes two, a combining
mark none. Nothing is broken inside a grapheme cluster, which is what a reader takes for one character.

Source: Netflix's Timed Text Style Guide (42 characters, two lines, 7 seconds); the BBC's Subtitle Guidelines (breaks at
pauses and punctuation, at least 0.3 seconds). Clusters and widths: Unicode, UAX #29 and #11, by wcwidth.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from wcwidth import iter_graphemes, wcswidth

from w2v_attn.transcription.outputs import Word
from w2v_attn.transcription.sequential_times import sequential_times

MAX_LINE_WIDTH, MAX_LINES = 42, 2
MAX_CUE_SECONDS, MIN_CUE_SECONDS = 7.0, 0.3
# A pause of MAX_PAUSE seconds ends a cue. One of PAUSE seconds is as good a place for a break as the end of a sentence,
# and one of less than MIN_PAUSE is not heard as one.
MAX_PAUSE, PAUSE, MIN_PAUSE = 1.0, 0.6, 0.3
# Cues that are shown for less than this many seconds are avoided.
SHORT_CUE_SECONDS = 1.0

SENTENCE_END, CLAUSE_END = frozenset(".?!…。？！؟۔।॥"), frozenset(",;:，、；：،؛—–")
# Costs of a break after a clause, and within a word or between characters that belong together.
CLAUSE_COST, WORD_COST, BOUND_COST = 0.3, 2.0, 4.0
# Of a cue of full width; half of it costs a quarter.
WIDTH_COST = 0.2


@dataclass(frozen=True)
class Cue:
    """A subtitle.

    Attributes:
        start: Seconds, in whole milliseconds.
        end: Seconds, in whole milliseconds.
        lines: One or two lines of text, without markup.
    """

    start: float
    end: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Unit:
    """A word, or the part of one that a line can hold: text that is not broken.

    Attributes:
        text: The text, without white space.
        start: Seconds.
        end: Seconds.
        glue: What separates it from the unit before, on the same line.
        continues: Whether it is a further part of the word before.
    """

    text: str
    start: float
    end: float
    glue: str
    continues: bool = False


def cues_of(words: Sequence[Word]) -> list[Cue]:
    """Return the cues of a recording, in order and without overlap. Joined, they are the text, up to white space.

    A word that is wider than a line is broken. A cue ends after `MAX_CUE_SECONDS`, also within the time of a word.

    Args:
        words: The words, in the order of the text; characters in languages without spaces.
    """
    units = list(_units(words))
    layout = _Layout(units)
    groups = list(layout.groups())
    spoken = [(units[first].start, max(unit.end for unit in units[first:last])) for first, last in groups]
    times = sequential_times(spoken, shortest=MIN_CUE_SECONDS, longest=MAX_CUE_SECONDS)
    return [Cue(*time, layout.lines(*group)) for time, group in zip(times, groups, strict=True)]


def text_width(text: str) -> int:
    """Return the columns that a text takes."""
    return sum(max(0, wcswidth(cluster)) for cluster in iter_graphemes(text))


def _units(words: Sequence[Word]) -> Iterator[_Unit]:
    """Yield what lines are made of: words, broken where they are too wide; joined where a cluster spans several."""
    pending: _Unit | None = None
    begun = 0.0
    for word in words:
        begun = max(begun, word.start)
        end = max(begun, word.end)
        texts = (word.joiner + word.word).split()
        glue = " " if word.joiner[:1].isspace() or word.word[:1].isspace() else ""
        total, seen = max(1, sum(map(len, texts))), 0
        for number, text in enumerate(texts):
            start, seen = begun + (end - begun) * seen / total, seen + len(text)
            unit = _Unit(text, start, begun + (end - begun) * seen / total, " " if number else glue)
            if pending is not None and not unit.glue and _is_one_cluster(pending.text, unit.text):
                pending = _Unit(pending.text + unit.text, pending.start, unit.end, pending.glue)
                continue
            if pending is not None:
                yield from _narrow(pending)
            pending = unit
    if pending is not None:
        yield from _narrow(pending)


def _is_one_cluster(before: str, after: str) -> bool:
    """Return whether no cluster begins with the second text where the two are joined."""
    *_, last = iter_graphemes(before)
    return len(next(iter(iter_graphemes(last + after)))) > len(last)


def _narrow(unit: _Unit) -> Iterator[_Unit]:
    """Yield a unit in parts that fit on a line; the time is shared between them by their clusters."""
    if text_width(unit.text) <= MAX_LINE_WIDTH:
        yield unit
        return
    clusters = list(iter_graphemes(unit.text))
    pace = (unit.end - unit.start) / len(clusters)
    first = width = 0
    for number, cluster in enumerate(clusters):
        columns = max(0, wcswidth(cluster))
        if width + columns > MAX_LINE_WIDTH:
            yield _part(unit, clusters, first, number, pace)
            first, width = number, 0
        width += columns
    yield _part(unit, clusters, first, len(clusters), pace)


def _part(unit: _Unit, clusters: Sequence[str], first: int, last: int, pace: float) -> _Unit:
    glue = unit.glue if first == 0 else ""
    text = "".join(clusters[first:last])
    return _Unit(text, unit.start + pace * first, unit.start + pace * last, glue, continues=first > 0)


class _Layout:
    """Units in cues and lines."""

    def __init__(self, units: Sequence[_Unit]):
        self._units = units
        glues = [len(unit.glue) for unit in units]
        widths = (glue + text_width(unit.text) for glue, unit in zip(glues, units, strict=True))
        self._glues, self._columns = glues, [0, *accumulate(widths)]
        self._breaks = [0.0, *(self._break_cost(number) for number in range(1, len(units))), 0.0]
        pauses = (max(0.0, b.start - a.end - MIN_PAUSE) / (PAUSE - MIN_PAUSE) for a, b in pairwise(units))
        self._pauses = [0.0, 0.0, *accumulate(pauses)]  # of the units before each

    def groups(self) -> list[tuple[int, int]]:
        """Return the first unit of each cue, and the one after its last."""
        count = len(self._units)
        costs, ends = [0.0] * (count + 1), [0] * count
        for first in range(count - 1, -1, -1):
            options = ((self._cue_cost(first, last) + costs[last], -last) for last in self._ends(first))
            costs[first], last = min(options)  # of equal ones the longer
            ends[first] = -last
        groups = []
        first = 0
        while first < count:
            groups.append((first, ends[first]))
            first = ends[first]
        return groups

    def lines(self, first: int, last: int) -> tuple[str, ...]:
        """Return the lines of a cue: one if that is enough, else two of about the same width."""
        if self._width(first, last) <= MAX_LINE_WIDTH:
            return (self._text(first, last),)
        middle = min(
            (m for m in range(first + 1, self._line_end(first) + 1) if self._width(m, last) <= MAX_LINE_WIDTH),
            key=lambda m: self._breaks[m] + 2 * abs(self._width(first, m) - self._width(m, last)) / MAX_LINE_WIDTH,
        )
        return self._text(first, middle), self._text(middle, last)

    def _ends(self, first: int) -> Iterator[int]:
        """Yield where a cue that begins with a unit may end: at least after that unit, and within the limits."""
        start, before = self._units[first].start, self._units[first].end
        yield first + 1
        for last in range(first + 2, self._line_end(self._line_end(first)) + 1):
            unit = self._units[last - 1]
            if unit.start - before > MAX_PAUSE or unit.end - start > MAX_CUE_SECONDS:
                return
            before = max(before, unit.end)
            yield last

    def _cue_cost(self, first: int, last: int) -> float:
        seconds = self._units[last - 1].end - self._units[first].start
        full = self._width(first, last) / (MAX_LINES * MAX_LINE_WIDTH)
        pauses = self._pauses[last] - self._pauses[first + 1]
        return 1 + self._breaks[last] + pauses + max(0.0, 1 - seconds / SHORT_CUE_SECONDS) + WIDTH_COST * full**2

    def _break_cost(self, number: int) -> float:
        """Return the cost of a break before a unit that is not the first."""
        before, after = self._units[number - 1], self._units[number]
        if not after.glue and (after.continues or _is_closing(after.text[0]) or _is_opening(before.text[-1])):
            return WORD_COST if after.continues else BOUND_COST
        last = before.text.rstrip("\"'”’»）)]」』")[-1:]
        cost = 0.0 if last in SENTENCE_END else CLAUSE_COST if last in CLAUSE_END else 1.0
        return cost * max(0.0, 1 - (after.start - before.end) / PAUSE) if last else 1.0

    def _width(self, first: int, last: int) -> int:
        """Return the columns of units on one line; none: 0."""
        return self._columns[last] - self._columns[first] - self._glues[first] if first < last else 0

    def _line_end(self, first: int) -> int:
        """Return the unit after the last that fits on a line with a first one."""
        if first == len(self._units):
            return first
        return bisect_right(self._columns, self._columns[first] + self._glues[first] + MAX_LINE_WIDTH) - 1

    def _text(self, first: int, last: int) -> str:
        units = self._units[first:last]
        return units[0].text + "".join(unit.glue + unit.text for unit in units[1:])


def _is_closing(character: str) -> bool:
    """Return whether a line should not begin with a character: closing brackets and quotes, and punctuation."""
    closing = unicodedata.category(character) in ("Pe", "Pf")
    return closing or character in SENTENCE_END or character in CLAUSE_END or character in "ー々ゝ・%％"


def _is_opening(character: str) -> bool:
    """Return whether a line should not end with a character: opening brackets and quotes."""
    return unicodedata.category(character) in ("Ps", "Pi")
