"""Loads a checkpoint, puts our attention in it, and reports what it is: `python scripts/load_weights.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("load")
