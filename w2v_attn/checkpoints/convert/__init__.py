"""Checkpoints in other forms than Hugging Face's: files -> `parts.Parts`, and back to torchaudio's form."""
