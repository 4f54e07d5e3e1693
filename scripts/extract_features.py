"""Features from audio, one safetensors file for each recording: `python scripts/extract_features.py --help`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["extract", *sys.argv[1:]])
