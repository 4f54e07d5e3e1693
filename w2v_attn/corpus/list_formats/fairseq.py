"""fairseq's manifests: a folder in the first line, then a path and its number of samples; texts in .wrd or .ltr."""

from pathlib import Path

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import row_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row, read_lines


def _recognises(manifest: Path) -> bool:
    """Return whether a .tsv is fairseq's: its first line is a folder, the second a path and a number of samples."""
    if manifest.suffix.lower() != ".tsv":
        return False
    lines = read_lines(manifest)
    first, second = next(lines, "").strip(), next(lines, "").strip().split("\t")
    return first != "" and "\t" not in first and len(second) == 2 and second[1].isdigit()


def _read(manifest: Path, options: ListOptions) -> Corpus:
    """Return a row for each line of fairseq's .tsv, with the text of the same line of its .wrd or .ltr file.

    Args:
        manifest: The .tsv file.
        options: Its root is the folder of the recordings; None: the folder that the first line of the manifest names.

    Raises:
        CorpusError: a line is malformed, or the number of lines of text differs from the number of recordings.
    """
    lines = read_lines(manifest)
    named = next(lines).strip()
    root = options.root or Path(named)
    texts = _texts(manifest)
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


def _texts(manifest: Path) -> list[str] | None:
    words, letters = manifest.with_suffix(".wrd"), manifest.with_suffix(".ltr")
    if words.is_file():
        return [line.strip() for line in read_lines(words)]
    if letters.is_file():  # "h e l l o | w o r l d |"
        return [line.replace(" ", "").replace("|", " ").strip() for line in read_lines(letters)]
    return None


FORMAT = ListFormat("fairseq manifest", _recognises, _read)
