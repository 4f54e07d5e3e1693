"""Stock transformers against ours on the same weights, stage by stage: `python scripts/verify.py --help`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
