"""LibriSpeech's tree: SPEAKER/CHAPTER/UTTERANCE.flac, with the texts of a chapter in its *.trans.txt."""

from pathlib import Path

from w2v_attn.corpus.audio_folder import walk_files
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row, Unusable
from w2v_attn.corpus.text_lines import NOT_UTF8, is_utf8, numbered_lines

TRANSCRIPTS_SUFFIX = ".trans.txt"


def _recognises(folder: Path) -> bool:
    """Return whether a folder is LibriSpeech's tree, or one of its parts, speakers or chapters."""
    return folder.is_dir() and any(
        True for depth in range(5) for _ in folder.glob("*/" * depth + f"*{TRANSCRIPTS_SUFFIX}")
    )


def _read(folder: Path, options: ListOptions) -> Corpus:
    """Return a row for each line of LibriSpeech's *.trans.txt files (utterance id, words), sorted by id.

    Raises:
        CorpusError: no line names a recording that is beside its transcript file; the text names the first line.
    """
    del options  # the tree says everything
    rows: list[Row] = []
    for transcripts in sorted(path for path in walk_files(folder) if path.name.endswith(TRANSCRIPTS_SUFFIX)):
        beside = {path.stem: path for path in transcripts.parent.iterdir() if path.suffix.lower() in AUDIO_EXTENSIONS}
        for number, line in numbered_lines(transcripts):
            if not line.strip():
                continue
            utterance, _, text = line.strip().partition(" ")
            path = beside.get(utterance, transcripts.parent / utterance)
            content = None
            if utterance not in beside:
                content = Unusable(f"{transcripts}, line {number}: there is no recording {utterance} beside it")
            elif not is_utf8(line):
                content = Unusable(f"{transcripts}, line {number}: {NOT_UTF8}")
            id, speaker = path.relative_to(folder).as_posix(), utterance.split("-")[0]
            rows.append(Row(id, path, text=text, speaker=speaker, content=content, line=number))
    if rows and all(row.unusable_reason for row in rows):
        raise CorpusError(rows[0].unusable_reason)
    return Corpus(tuple(sorted(rows, key=lambda row: row.id)))


FORMAT = ListFormat("LibriSpeech", _recognises, _read)
