"""The extraction run: rows -> waveforms -> features -> files; what a run before this one made of them stays."""
