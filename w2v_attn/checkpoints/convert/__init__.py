"""Checkpoints in other formats than Hugging Face's: files -> `parts.RawCheckpoint`, and back to torchaudio's format."""
