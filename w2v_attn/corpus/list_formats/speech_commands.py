"""Speech Commands' folder: a sub-folder for each word, and lists of validation and test recordings."""

from pathlib import Path

import soundfile

from w2v_attn.corpus.audio_folder import list_folder
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.rows import Corpus, Row
from w2v_attn.corpus.text_lines import read_lines

KEYWORDS = frozenset("yes no up down left right on off stop go".split())
UNKNOWN, SILENCE, NOISE_FOLDER = "_unknown_", "_silence_", "_background_noise_"
SPLIT_LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}


def _recognises(folder: Path) -> bool:
    """Return whether a folder has Speech Commands' lists of validation and test recordings."""
    return all((folder / name).is_file() for name in SPLIT_LISTS)


def _read(folder: Path, _: ListOptions) -> Corpus:
    """Return Speech Commands' rows with the twelve classes of keyword spotting: ten words, `_unknown_`, `_silence_`.

    Each second of the background noise is a recording of `_silence_`; two of every ten are held out.

    Raises:
        CorpusError: a list cannot be read.

    Source:
        P. Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", sections 5 and 7; split and
        classes as in SUPERB.
    """
    splits = {line.strip(): split for name, split in SPLIT_LISTS.items() for line in read_lines(folder / name)}
    corpus = list_folder(folder)
    rows: list[Row] = []
    for row in corpus.rows:
        if row.label == NOISE_FOLDER:
            rows += _seconds_of_noise(row)
            continue
        label = row.label if row.label in KEYWORDS else UNKNOWN
        speaker = row.path.stem.partition("_nohash_")[0]
        rows.append(Row(row.id, row.path, label=label, speaker=speaker, split=splits.get(row.id, "train")))
    return Corpus(tuple(rows), corpus.skipped)


def _seconds_of_noise(row: Row) -> list[Row]:
    try:
        duration = soundfile.info(str(row.path)).duration if row.path.is_file() else 0.0
    except soundfile.LibsndfileError:
        duration = 0.0
    if duration < 1:  # too short to be cut; or unreadable, which is reported where the recording is read
        return [Row(row.id, row.path, label=SILENCE, split="train")]
    held_out = {8: "valid", 9: "test"}
    return [
        Row(
            f"{row.id}/{second:03d}",
            row.path,
            float(second),
            1.0,
            label=SILENCE,
            split=held_out.get(second % 10, "train"),
        )
        for second in range(int(duration))
    ]


FORMAT = ListFormat("Speech Commands", _recognises, _read)
