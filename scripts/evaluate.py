"""How often a fine-tuned checkpoint is wrong: `python scripts/evaluate.py model.checkpoint=DIR audio=test.csv`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
