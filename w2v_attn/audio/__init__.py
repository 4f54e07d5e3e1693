"""From a file to a waveform at the model's rate, and a reason where there is none."""
