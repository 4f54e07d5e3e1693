"""Measure a checkpoint's errors: `python scripts/evaluate.py model.checkpoint=FOLDER audio=test.csv`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("evaluate")
