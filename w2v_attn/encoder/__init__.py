"""The encoder: waveforms in, features of chosen layers out."""
