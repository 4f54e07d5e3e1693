"""Published corpora in their own layouts: fairseq's manifests, LibriSpeech's tree, Speech Commands' folder.

Each layout has a function that recognises it and one that returns its rows.
"""

from pathlib import Path

import soundfile

from w2v_attn.corpus.audio_folder import list_folder, walk_files
from w2v_attn.corpus.manifests import row_of
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row, read_lines

TRANSCRIPTS_SUFFIX = ".trans.txt"
KEYWORDS = frozenset("yes no up down left right on off stop go".split())
UNKNOWN, SILENCE, NOISE_FOLDER = "_unknown_", "_silence_", "_background_noise_"
SPLIT_LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}


def is_fairseq_manifest(manifest: Path) -> bool:
    """Return whether a .tsv is fairseq's: its first line is a folder, the second a path and a number of samples."""
    if manifest.suffix.lower() != ".tsv":
        return False
    lines = read_lines(manifest)
    first, second = next(lines, "").strip(), next(lines, "").strip().split("\t")
    return first != "" and "\t" not in first and len(second) == 2 and second[1].isdigit()


def read_fairseq_manifest(manifest: Path, root: Path | None = None) -> Corpus:
    """Return a row for each line of fairseq's .tsv, with the text of the same line of its .wrd or .ltr file.

    Args:
        manifest: The .tsv file.
        root: The folder of the recordings; None: the folder that the first line of the manifest names.

    Raises:
        CorpusError: a line is malformed, or the number of lines of text differs from the number of recordings.
    """
    lines = read_lines(manifest)
    named = next(lines).strip()
    root = root or Path(named)
    texts = _fairseq_texts(manifest)
    rows: list[Row] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 2):
        path, _, samples = line.rstrip("\n").partition("\t")
        where = f"{manifest}, line {number}"
        if not samples.strip().isdigit():
            raise CorpusError(f"{where}: expected a path, a tab, and a number of samples, found {line.strip()!r}")
        if texts is not None and len(rows) >= len(texts):
            raise CorpusError(f"{where}: there are only {len(texts)} lines of text beside it")
        row = row_of({"path": path, "text": texts[len(rows)] if texts is not None else None}, root, where)
        if row.id in seen:
            raise CorpusError(f"{where}: {row.id} is listed already")
        seen.add(row.id)
        rows.append(row)
    if texts is not None and len(texts) != len(rows):
        raise CorpusError(
            f"{manifest} lists {len(rows)} recordings, but there are {len(texts)} lines of text beside it"
        )
    return Corpus(tuple(rows))


def _fairseq_texts(manifest: Path) -> list[str] | None:
    words, letters = manifest.with_suffix(".wrd"), manifest.with_suffix(".ltr")
    if words.is_file():
        return [line.strip() for line in read_lines(words)]
    if letters.is_file():  # "h e l l o | w o r l d |"
        return [line.replace(" ", "").replace("|", " ").strip() for line in read_lines(letters)]
    return None


def is_librispeech(folder: Path) -> bool:
    """Return whether a folder is LibriSpeech's tree, or one of its parts, speakers or chapters."""
    return any(True for depth in range(5) for _ in folder.glob("*/" * depth + f"*{TRANSCRIPTS_SUFFIX}"))


def read_librispeech(folder: Path) -> Corpus:
    """Return a row for each line of LibriSpeech's *.trans.txt files (utterance id, words), sorted by id.

    Raises:
        CorpusError: a line names a recording that is not beside its transcript file; the text names the line.
    """
    rows = []
    for transcripts in sorted(path for path in walk_files(folder) if path.name.endswith(TRANSCRIPTS_SUFFIX)):
        beside = {path.stem: path for path in transcripts.parent.iterdir() if path.suffix.lower() in AUDIO_EXTENSIONS}
        for number, line in enumerate(read_lines(transcripts), 1):
            if not line.strip():
                continue
            utterance, _, text = line.strip().partition(" ")
            if utterance not in beside:
                raise CorpusError(f"{transcripts}, line {number}: there is no recording {utterance} beside it")
            path = beside[utterance]
            speaker = utterance.split("-")[0]
            rows.append(Row(path.relative_to(folder).as_posix(), path, text=text, speaker=speaker))
    return Corpus(tuple(sorted(rows, key=lambda row: row.id)))


def is_speech_commands(folder: Path) -> bool:
    """Return whether a folder has Speech Commands' lists of validation and test recordings."""
    return all((folder / name).is_file() for name in SPLIT_LISTS)


def read_speech_commands(folder: Path) -> Corpus:
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
