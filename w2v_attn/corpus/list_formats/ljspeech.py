"""LJSpeech: metadata.csv with `id|text|normalised text` and no header, and wavs/ID.wav beside it."""

from collections.abc import Iterator
from pathlib import Path

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus
from w2v_attn.corpus.text_lines import NOT_UTF8, first_line, is_utf8, numbered_lines

LISTS, FOLDERS = ("metadata.csv", "metadata.txt"), ("wavs", "wav")
EXTENSIONS = frozenset((".csv", ".txt", ".lst", ".list"))


def _list_of(path: Path) -> Path | None:
    """Return the list that a path names, itself or in a folder; None if it is not LJSpeech's."""
    if path.is_dir():
        return next((path / name for name in LISTS if (path / name).is_file() and _list_of(path / name)), None)
    wavs = _recordings_of(path)
    if path.suffix.lower() not in EXTENSIONS or wavs is None:
        return None
    fields = first_line(path).split("|")
    return path if len(fields) in (2, 3) and _recording(wavs, fields[0].strip()) is not None else None


def _recordings_of(metadata: Path) -> Path | None:
    """Return the folder of the recordings beside a list."""
    return next((metadata.parent / name for name in FOLDERS if (metadata.parent / name).is_dir()), None)


def _recording(wavs: Path, id: str) -> Path | None:
    """Return the recording of an id, whatever its extension."""
    if not id or "/" in id or "\0" in id or not is_utf8(id):
        return None
    names = (id, *(f"{id}{extension}" for extension in (".wav", *sorted(AUDIO_EXTENSIONS))))
    return next((wavs / name for name in names if (wavs / name).is_file()), None)


def _read(path: Path, options: ListOptions) -> Corpus:
    metadata = _list_of(path)
    assert metadata is not None
    return corpus_of(_records(metadata), metadata, options)


def _records(metadata: Path) -> Iterator[Record]:
    wavs = _recordings_of(metadata)
    assert wavs is not None
    for number, line in numbered_lines(metadata):
        if not line.strip():
            continue
        id, *texts = line.split("|")
        reason = None if is_utf8(line) else NOT_UTF8
        if not 1 <= len(texts) <= 2:
            reason = f"expected id|text or id|text|normalised text, found {len(texts) + 1} columns between |"
        name = (_recording(wavs, id.strip()) or Path(f"{id.strip()}.wav")).name
        # The normalised text has numbers and abbreviations written out: it is what is said.
        text = next((text for text in reversed(texts) if text.strip()), "")
        path = f"{wavs.name}/{name}" if id.strip() else ""
        yield Record(f"line {number}", {"path": path, "text": text.strip()}, number, reason)


FORMAT = ListFormat("LJSpeech", lambda path: _list_of(path) is not None, _read)
