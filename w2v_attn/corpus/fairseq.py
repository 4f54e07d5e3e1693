"""fairseq's manifests -> rows: a .tsv whose first line is the folder of all paths, beside .wrd or .ltr."""

from pathlib import Path

from w2v_attn.corpus.manifests import row_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row
from w2v_attn.corpus.texts import read_lines


def is_one(manifest: Path) -> bool:
    """Whether a .tsv is fairseq's: the first line is a folder alone, the second a path and a number of samples."""
    if manifest.suffix.lower() != ".tsv":
        return False
    lines = read_lines(manifest)
    first, second = next(lines, "").strip(), next(lines, "").strip().split("\t")
    return first != "" and "\t" not in first and len(second) == 2 and second[1].isdigit()


def read(manifest: Path, root: Path | None = None) -> Corpus:
    """A row for each line; its text is that line of the .wrd file of the same name, or of the .ltr file.

    root: the folder of the recordings, where it is not the one that the manifest names.

    Raises:
        CorpusError: a line is wrong, or there are not as many lines of text as recordings.
    """
    lines = read_lines(manifest)
    named = next(lines).strip()
    root = root or Path(named)
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
