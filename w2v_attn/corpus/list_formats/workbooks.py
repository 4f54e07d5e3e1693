"""Workbooks of spreadsheets, which are refused by name: they are no lists."""

from pathlib import Path
from typing import NoReturn

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.rows import CorpusError

EXTENSIONS = frozenset(".xlsx .xls .xlsm .xlsb .ods .numbers".split())
_LISTS = frozenset((".csv", ".tsv", ".txt"))
_ZIP, _OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"


def _recognises(path: Path) -> bool:
    extension = path.suffix.lower()
    if extension in EXTENSIONS:
        return path.is_file()
    if extension not in _LISTS or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) in (_ZIP, _OLE)
    except OSError:
        return False  # reported by its reader


def _read(path: Path, _: ListOptions) -> NoReturn:
    raise CorpusError(
        f"{path} is a workbook of a spreadsheet, which is not read. Save its sheet as CSV: in Excel with "
        "File > Save As > CSV UTF-8, in LibreOffice with File > Save As > Text CSV"
    )


FORMAT = ListFormat("workbook", _recognises, _read)
