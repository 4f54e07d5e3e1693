"""Compare our implementation with stock transformers: `python scripts/verify.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("verify")
