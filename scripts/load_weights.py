"""Loads a checkpoint, puts our attention in it, and reports what it is: `python scripts/load_weights.py --help`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["load", *sys.argv[1:]])
