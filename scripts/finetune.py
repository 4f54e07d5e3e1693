"""Fine-tunes an encoder on recordings: `python scripts/finetune.py data=local data.train=train.csv model=base`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
