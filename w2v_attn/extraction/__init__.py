"""Extraction of a corpus: rows -> waveforms -> features -> files, resumable, by one process or many."""
