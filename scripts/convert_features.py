"""Features on disk in another layout, selected and pooled: `python scripts/convert_features.py --help`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
