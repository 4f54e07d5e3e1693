"""LibriSpeech's tree, speaker/chapter/*.flac beside *.trans.txt -> rows."""

from pathlib import Path

from w2v_attn.corpus.folder import files
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row
from w2v_attn.corpus.texts import read_lines

TRANSCRIPTS = ".trans.txt"


def is_one(folder: Path) -> bool:
    """Whether transcripts lie where LibriSpeech's tree has them: of a chapter, a speaker, a part, or all parts."""
    return any(True for depth in range(5) for _ in folder.glob("*/" * depth + f"*{TRANSCRIPTS}"))


def read(folder: Path) -> Corpus:
    """A row for each line of each transcript, in the order of ids: utterance id, words.

    Raises:
        CorpusError: a line without words or whose recording is not beside it; it names the line.
    """
    rows = []
    for transcripts in sorted(path for path in files(folder) if path.name.endswith(TRANSCRIPTS)):
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
