"""Write features in another layout, selected and pooled: `python scripts/convert_features.py --help`."""

from w2v_attn.__main__ import run

if __name__ == "__main__":
    run("convert")
