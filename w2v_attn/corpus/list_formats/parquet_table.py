"""Tables in Parquet that name recordings by their paths, such as an AudioFolder's metadata.parquet."""

from collections.abc import Iterator
from pathlib import Path

from w2v_attn.corpus.records import Record
from w2v_attn.corpus.rows import CorpusError


def read_records(path: Path) -> Iterator[Record]:
    """Yield the record of each row.

    Raises:
        CorpusError: the file cannot be read, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError("Parquet files need their library: pip install 'w2v_attn[datasets]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as opened:
            for batch in opened.iter_batches():
                for number, values in enumerate(batch.to_pylist()):
                    yield Record(f"row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{path} cannot be read as Parquet: {error}") from error
