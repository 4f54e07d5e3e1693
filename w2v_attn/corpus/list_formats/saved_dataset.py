"""A Hugging Face data set that `save_to_disk` wrote."""

import os

from w2v_attn.corpus.hub_datasets import is_saved_dataset, read_dataset
from w2v_attn.corpus.list_formats.list_format import ListFormat

FORMAT = ListFormat(
    "saved data set", is_saved_dataset, lambda path, options: read_dataset(os.fspath(path), options.columns)
)
