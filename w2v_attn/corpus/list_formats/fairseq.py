"""fairseq's manifests: a folder in the first line, then a path and its number of samples; texts in .wrd or .ltr."""

from pathlib import Path

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import Corpus, CorpusError
from w2v_attn.corpus.text_lines import NOT_UTF8, is_utf8, numbered_lines, read_lines


def _recognises(manifest: Path) -> bool:
    """Return whether a .tsv is fairseq's: its first line is a folder, the second a path and a number of samples."""
    if manifest.suffix.lower() != ".tsv":
        return False
    lines = (line.strip() for _, line in numbered_lines(manifest))
    first, second = next(lines, ""), next(lines, "").split("\t")
    return first != "" and "\t" not in first and len(second) == 2 and second[1].isdigit()


def _read(manifest: Path, options: ListOptions) -> Corpus:
    """Return a row for each line of fairseq's .tsv, with the text of the same line of its .wrd or .ltr file.

    Args:
        manifest: The .tsv file.
        options: Its root is the folder of the recordings; None: the folder that the first line of the manifest names.

    Raises:
        CorpusError: no line can be used, or the number of lines of text differs from the number of recordings.
    """
    lines = numbered_lines(manifest)
    named = next(lines)[1].strip()
    texts = _texts(manifest)
    records: list[Record] = []
    for number, line in lines:
        if not line.strip():
            continue
        path, _, samples = line.partition("\t")
        reason = None
        if not samples.strip().isdigit():
            reason = f"expected a path, a tab, and a number of samples, found {line.strip()!r}"
        elif not is_utf8(line):
            reason = NOT_UTF8
        if texts is not None and len(records) >= len(texts):
            raise CorpusError(f"{manifest}, line {number}: there are only {len(texts)} lines of text beside it")
        text = None if texts is None else texts[len(records)]
        records.append(Record(f"line {number}", {"path": path, "text": text}, number, reason))
    if texts is not None and len(texts) != len(records):
        raise CorpusError(
            f"{manifest} lists {len(records)} recordings, but there are {len(texts)} lines of text beside it"
        )
    return corpus_of(records, manifest, options, folder=Path(named))


def _texts(manifest: Path) -> list[str] | None:
    words, letters = manifest.with_suffix(".wrd"), manifest.with_suffix(".ltr")
    if words.is_file():
        return [line.strip() for line in read_lines(words)]
    if letters.is_file():  # "h e l l o | w o r l d |"
        return [line.replace(" ", "").replace("|", " ").strip() for line in read_lines(letters)]
    return None


FORMAT = ListFormat("fairseq manifest", _recognises, _read)
