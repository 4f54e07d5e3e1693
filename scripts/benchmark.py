"""Times our layer against its peers: `python scripts/benchmark.py --help`."""

import sys

from w2v_attn.app import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
