"""TextGrid, the annotations of Praat, in the long text format.

Source: P. Boersma and D. Weenink, Praat's manual, "TextGrid file formats".
"""

from collections.abc import Iterator

from w2v_attn.transcription.formats.annotation import Annotation, intervals


def as_textgrid(annotation: Annotation) -> str:
    """Return a TextGrid in UTF-8, with an interval tier for each tier; without tiers an empty one, for Praat.

    The intervals of a tier fill the recording, as Praat requires: there are empty ones between the words, and neither
    an overlap nor an interval of length 0.
    """
    tiers = {name: list(intervals(words)) for name, words in (annotation.tiers or {"labels": ()}).items()}
    end = max([annotation.duration, *(found[-1][1] for found in tiers.values() if found)])
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end!r}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, found) in enumerate(tiers.items(), 1):
        filled = list(_filled(found, end))
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f"        name = {_quoted(name)}",
            "        xmin = 0",
            f"        xmax = {end!r}",
            f"        intervals: size = {len(filled)}",
        ]
        for place, (start, stop, text) in enumerate(filled, 1):
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {start!r}",
                f"            xmax = {stop!r}",
                f"            text = {_quoted(text)}",
            ]
    return "\n".join([*lines, ""])


def _filled(found: list[tuple[float, float, str]], end: float) -> Iterator[tuple[float, float, str]]:
    """Yield intervals, with empty ones between them and at both ends."""
    before = 0.0
    for start, stop, text in found:
        if start > before:
            yield before, start, ""
        yield start, stop, text
        before = stop
    if end > before:
        yield before, end, ""


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
