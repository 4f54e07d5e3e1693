"""What recordings say, by the head of a fine-tuned checkpoint: `python scripts/transcribe.py --help`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["transcribe", *sys.argv[1:]])
