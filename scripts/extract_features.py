"""Compute features of audio: `python scripts/extract_features.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("extract")
