"""LibriSpeech's tree: SPEAKER/CHAPTER/UTTERANCE.flac, with the texts of a chapter in its *.trans.txt."""

from pathlib import Path

from w2v_attn.corpus.audio_folder import walk_files
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row, read_lines

TRANSCRIPTS_SUFFIX = ".trans.txt"


def _recognises(folder: Path) -> bool:
    """Return whether a folder is LibriSpeech's tree, or one of its parts, speakers or chapters."""
    return folder.is_dir() and any(
        True for depth in range(5) for _ in folder.glob("*/" * depth + f"*{TRANSCRIPTS_SUFFIX}")
    )


def _read(folder: Path, _: ListOptions) -> Corpus:
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


FORMAT = ListFormat("LibriSpeech", _recognises, _read)
