"""Hugging Face data sets -> rows. Recordings stay encoded: they are decoded here like all others, without FFmpeg."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from w2v_attn.corpus.manifests import LABEL_COLUMNS, PATH_COLUMNS, SPEAKER_COLUMNS, TEXT_COLUMNS
from w2v_attn.corpus.rows import Corpus, CorpusError, Row

PREFIX = "hub:"
# What the names of splits begin with; others (Common Voice's "invalidated") are left out.
SPLITS = {"train": "train", "valid": "valid", "dev": "valid", "test": "test"}


def is_one(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read(folder: Path) -> Corpus:
    """The rows of a data set that was saved with `save_to_disk`."""
    datasets = _library()
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow, JSON and file errors of many kinds
        raise CorpusError(f"{folder} cannot be read as a data set: {error}") from error
    return _corpus(found, str(folder))


def read_hub_set(name: str) -> Corpus:
    """The rows of `hub:OWNER/NAME[/CONFIG][/SPLIT]`, from the hub or its cache.

    Raises:
        CorpusError: there is no such data set, or no network.
    """
    datasets = _library()
    parts = name.removeprefix(PREFIX).split("/")
    config, split = [*parts[2:4], None, None][:2]
    try:
        found = datasets.load_dataset("/".join(parts[:2]), config, split=split)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(
            f"{name} cannot be had: {reason}. Expected hub:OWNER/NAME[/CONFIG][/SPLIT]; without network name the "
            "folder of a data set that was saved with save_to_disk"
        ) from error
    return _corpus(found, name)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise CorpusError("Hugging Face data sets need their library: pip install 'w2v_attn[datasets]'") from error
    return datasets


def _corpus(found: Any, source: str) -> Corpus:
    parts = found.items() if hasattr(found, "items") else [(None, found)]
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for name, part in parts:
        split = next((split for start, split in SPLITS.items() if name and name.startswith(start)), None)
        if name is not None and split is None:
            skipped[f"rows of {name}"] += len(part)
        else:
            rows += _rows(part, name, split, source)
    if not rows:
        raise CorpusError(f"{source} lists no recordings of a split that begins with {', '.join(SPLITS)}")
    return Corpus(tuple(rows), skipped)


def _rows(part: Any, name: str | None, split: str | None, source: str) -> Iterator[Row]:
    import datasets

    audio = next((name for name, kind in part.features.items() if isinstance(kind, datasets.Audio)), None)
    audio = audio or next((name for name in PATH_COLUMNS if name in part.features), None)
    if audio is None:
        raise CorpusError(f"{source} has no column of audio; it has {', '.join(part.features)}")
    if isinstance(part.features[audio], datasets.Audio):
        part = part.cast_column(audio, datasets.Audio(decode=False))
    columns = {
        field: next((name for name in names if name in part.features), None)
        for field, names in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS), ("speaker", SPEAKER_COLUMNS))
    }
    known = part.select_columns([name for name in columns.values() if name is not None])
    before = f"{name}/" if name else ""
    for number in range(len(part)):
        fields = {field: _value(known, name, number) for field, name in columns.items() if name is not None}
        path, content = _recording(part, audio, number, f"{source}/{before}{number:07d}")
        yield Row(
            f"{before}{number:07d}",
            path,
            text=fields.get("text"),
            label=fields.get("label"),
            speaker=fields.get("speaker"),
            split=split,
            content=content,
        )


def _value(part: Any, column: str, number: int) -> str | None:
    value, kind = part[number][column], part.features[column]
    if value is None:
        return None
    return kind.int2str(value) if hasattr(kind, "int2str") and isinstance(value, int) else str(value)


def _recording(part: Any, column: str, number: int, where: str) -> tuple[Path, Callable[[], bytes] | None]:
    """The file, or a name for it and what gives its bytes, when they stand in the data set itself."""
    cell = part[number][column]
    if isinstance(cell, str):
        return Path(cell), None
    if not isinstance(cell, dict) or (cell.get("bytes") is None and not cell.get("path")):
        raise CorpusError(f"{where} has no recording in its column {column}")
    if cell.get("bytes") is None:
        return Path(cell["path"]), None
    return Path(where + Path(cell.get("path") or "").suffix), lambda: part[number][column]["bytes"]
