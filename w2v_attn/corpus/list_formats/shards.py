"""One tar shard, or one Parquet file with recordings in it."""

from w2v_attn.corpus.list_formats.list_format import ListFormat
from w2v_attn.corpus.parquet_rows import PARQUET_EXTENSION, read_parquet_files
from w2v_attn.corpus.tar_shards import is_shard_name, read_tar_shards

TAR = ListFormat(
    "tar shard",
    lambda path: is_shard_name(path.name),
    lambda path, options: read_tar_shards([path], path.parent, options.columns),
)
PARQUET = ListFormat(
    "Parquet file",
    lambda path: path.suffix.lower() == PARQUET_EXTENSION,
    lambda path, options: read_parquet_files([path], path.parent, options),
)
