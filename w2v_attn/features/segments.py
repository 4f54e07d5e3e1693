"""Files of segments: the spans of each recording to pool over, with labels."""

import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from w2v_attn.features import textgrids
from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.pooling import Span
from w2v_attn.features.recording_names import ids_by_name

COLUMNS = ("id", "start", "end")
# Columns of RTTM: type, file, channel, onset, duration, orthography, type of speaker, speaker, …
RTTM_NAME, RTTM_ONSET, RTTM_DURATION, RTTM_LABEL, RTTM_COLUMNS = 1, 3, 4, 7, 8


def read_segments(path: Path, ids: Iterable[str]) -> dict[str, list[Span]]:
    """Return id -> its spans, in the order of the file.

    Args:
        path: .csv or .tsv with the columns id, start, end (seconds) and optionally label; or .rttm; or a .TextGrid, or
            a folder of them in a tree like that of the recordings, each named after its recording. If they have several
            interval tiers, append the name of one: `aligned:phones`. Intervals without a text are left out.
        ids: Ids of the recordings. A name in the file is an id, or an id without its extension, its folders, or both,
            if only one recording matches.

    Raises:
        FeatureSetError: there is no such file, or a line is invalid or matches no recording; the error names the line.
    """
    by_name = ids_by_name(ids)
    first = next(iter(by_name.values()), ("",))[0]
    found: dict[str, list[Span]] = defaultdict(list)
    try:
        for where, name, start, end, label in _lines(path):
            candidates = by_name.get(name, ())
            if len(candidates) != 1:
                problem = (
                    f"which could be {' or '.join(candidates[:3])}"
                    if candidates
                    else "of which there are no features; an id is " + first
                )
                raise FeatureSetError(f"{where}: {name}, {problem}")
            found[candidates[0]].append(Span(*_seconds(start, end, where), label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FeatureSetError(f"segments={path} cannot be read: {error}") from error
    if not found:
        raise FeatureSetError(f"segments={path} has no lines with segments")
    return dict(found)


def _lines(path: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (where, name, start, end, label) of each segment."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".rttm"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _rttm(file) if suffix == ".rttm" else _table(file, "\t" if suffix == ".tsv" else ",", path)
            for line, name, start, end, label in rows:
                yield f"{path}, line {line}", name, start, end, label
        return
    folder, _, tier = os.fspath(path).rpartition(":") if not path.exists() else (path, "", "")
    folder = Path(folder)
    if folder.suffix.lower() == textgrids.EXTENSION:
        yield from _textgrid(folder, folder.stem, tier)
    elif folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() == textgrids.EXTENSION)
        for file in files:
            yield from _textgrid(file, file.relative_to(folder).with_suffix("").as_posix(), tier)
    else:
        raise FeatureSetError(
            f"segments={path} must be .csv or .tsv with the columns id,start,end[,label], or .rttm, or .TextGrid or a "
            "folder of them, with :TIER behind it"
        )


def _textgrid(file: Path, name: str, tier: str) -> Iterator[tuple[str, str, str, str, str]]:
    tiers = textgrids.read_textgrid(file)
    named = f"{', '.join(tiers) or 'none'}: name one behind the path, as in segments=aligned:phones"
    if tier and tier not in tiers:
        raise FeatureSetError(f"{file} has no tier of intervals {tier}; its tiers are {named}")
    if not tier and len(tiers) != 1:
        raise FeatureSetError(f"{file} has {len(tiers)} tiers of intervals, {named}")
    chosen = tier or next(iter(tiers))
    for number, (start, end, label) in enumerate(tiers[chosen], 1):
        if label.strip():
            yield f"{file}, interval {number} of {chosen}", name, repr(start), repr(end), label.strip()


def _table(lines: Iterable[str], delimiter: str, path: Path) -> Iterator[tuple[int, str, str, str, str]]:
    reader = csv.DictReader(lines, delimiter=delimiter)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise FeatureSetError(f"{path} has no column {', '.join(missing)}: expected id,start,end and perhaps label")
    for row in reader:
        yield reader.line_num, row["id"], row["start"] or "", row["end"] or "", row.get("label") or ""


def _rttm(lines: Iterable[str]) -> Iterator[tuple[int, str, str, str, str]]:
    for line, text in enumerate(lines, 1):
        fields = text.split()
        if not fields or fields[0] != "SPEAKER":  # other types have no times
            continue
        if len(fields) < RTTM_COLUMNS:
            raise FeatureSetError(f"line {line} of the RTTM has {len(fields)} columns, expected {RTTM_COLUMNS} or more")
        try:
            end = str(float(fields[RTTM_ONSET]) + float(fields[RTTM_DURATION]))
        except ValueError:
            end = fields[RTTM_DURATION]
        yield line, fields[RTTM_NAME], fields[RTTM_ONSET], end, fields[RTTM_LABEL]


def _seconds(start: str, end: str, where: str) -> tuple[float, float]:
    try:
        first, last = float(start), float(end)
    except ValueError:
        first = last = math.nan
    if not (0 <= first < last < math.inf):
        raise FeatureSetError(f"{where}: start and end must be seconds with 0 ≤ start < end, got {start} and {end}")
    return first, last
