"""Turn recordings into text: `python scripts/transcribe.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("transcribe")
