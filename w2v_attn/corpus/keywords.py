"""Speech Commands' folder -> rows with the twelve classes of keyword spotting: ten words, `_unknown_`, `_silence_`.

Source: P. Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", sections 5 and 7; the split
and the classes as in SUPERB.
"""

from pathlib import Path

import soundfile

from w2v_attn.corpus.folder import walk
from w2v_attn.corpus.rows import Corpus, Row
from w2v_attn.corpus.texts import read_lines

WORDS = frozenset("yes no up down left right on off stop go".split())
UNKNOWN, SILENCE, NOISE_FOLDER = "_unknown_", "_silence_", "_background_noise_"
LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}


def is_one(folder: Path) -> bool:
    """Whether it has Speech Commands' lists of validation and test recordings."""
    return all((folder / name).is_file() for name in LISTS)


def read(folder: Path) -> Corpus:
    """The recordings of words with their split; silence is each second of the noise, every tenth of it held out.

    Raises:
        CorpusError: a list cannot be read.
    """
    splits = {line.strip(): split for name, split in LISTS.items() for line in read_lines(folder / name)}
    corpus = walk(folder)
    rows: list[Row] = []
    for row in corpus.rows:
        if row.label == NOISE_FOLDER:
            rows += _seconds(row)
            continue
        label = row.label if row.label in WORDS else UNKNOWN
        speaker = row.path.stem.partition("_nohash_")[0]
        rows.append(Row(row.id, row.path, label=label, speaker=speaker, split=splits.get(row.id, "train")))
    return Corpus(tuple(rows), corpus.skipped)


def _seconds(row: Row) -> list[Row]:
    try:
        duration = soundfile.info(str(row.path)).duration if row.path.is_file() else 0.0
    except soundfile.LibsndfileError:
        duration = 0.0
    if duration < 1:  # too short to be cut; or it cannot be read, and where it is read, why is said
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
