"""Text with word times, or a label, for each waveform, from the head of a fine-tuned checkpoint."""
