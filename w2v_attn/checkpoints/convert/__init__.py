"""Conversion between checkpoint formats: fairseq and torchaudio to Hugging Face, and Hugging Face to torchaudio."""
