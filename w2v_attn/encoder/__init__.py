"""Waveforms in, frames of chosen layers out. Knows attention and pretrained."""
