"""Conversion between checkpoint formats: fairseq, fairseq2, torchaudio to Hugging Face; Hugging Face to torchaudio."""
