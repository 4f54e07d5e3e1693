"""Waveforms in, text with word times or a label out, by the head of a fine-tuned checkpoint."""
