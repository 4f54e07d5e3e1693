"""Load a checkpoint, report what it is and convert it: `python scripts/load_weights.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("load")
