"""Integrity checks of audio files: truncation, checksums, and headers that contradict the content."""
