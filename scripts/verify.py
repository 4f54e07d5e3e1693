"""Stock transformers against ours on the same weights, stage by stage: `python scripts/verify.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("verify")
