"""Resumable runs over a corpus: read rows ahead, batch them, run a model, write results, record failures."""
