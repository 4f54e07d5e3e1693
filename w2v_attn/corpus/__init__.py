"""Rows, one for each recording, of a folder, a manifest, a published corpus, tar shards or a data set."""
