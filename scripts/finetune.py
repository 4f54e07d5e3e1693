"""Train an encoder on recordings: `python scripts/finetune.py data=local data.train=train.csv model=base`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("finetune")
