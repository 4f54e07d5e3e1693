"""One file for each format of data sets: what recognises it, and what reads it. `registry.py` has their order."""
