"""Waveforms of audio files at the model's sample rate, or the reason why a file cannot be used."""
