"""Time our code and its peers: `python scripts/benchmark.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("benchmark")
