"""Checkpoints in other formats than Hugging Face's: files -> `parts.Parts`, and back to torchaudio's format."""
