"""How often a fine-tuned checkpoint is wrong: `python scripts/evaluate.py model.checkpoint=DIR audio=test.csv`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("evaluate")
