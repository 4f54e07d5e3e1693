"""Draws attention.png: where four heads of the bundled checkpoint attend while it hears “turn the radio on”.

pip install -e ".[finetune]" && python docs/images/attention.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from w2v_attn import load_encoder, read_audio, replace_attention
from w2v_attn.transcription.load_recognizer import load_recognizer

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "data/speech/en-gb-scotland+m5/27-turn-the-radio-on.flac"
HEADS = ((1, 2), (2, 4), (3, 3), (4, 3))  # block, head


def main(output: Path) -> None:
    """Writes the picture."""
    wave = read_audio(CLIP)
    encoder = load_encoder(ROOT / "data/tiny")
    model = replace_attention(encoder.model)
    with torch.no_grad():
        weights = model(encoder.prepare(wave)[None], output_attentions=True).attentions  # a block: [1, H, T, T]
    words = load_recognizer(ROOT / "data/tiny").recognize(wave).words
    middles, names = [(word.start + word.end) / 2 for word in words], [word.word for word in words]
    seconds = len(wave) / encoder.sample_rate
    figure, axes = plt.subplots(1, len(HEADS), figsize=(10, 3), layout="constrained", sharey=True)
    for axis, (block, head) in zip(axes, HEADS, strict=True):
        axis.imshow(
            weights[block - 1][0, head - 1].sqrt(),
            cmap="magma",
            interpolation="nearest",
            extent=(0, seconds, seconds, 0),
        )
        axis.set_title(f"block {block}, head {head}", fontsize=10)
        axis.set_xticks(middles, names, fontsize=9)
        axis.set_yticks(middles, names, fontsize=9)
        axis.tick_params(length=0)
        axis.set_xlabel("attended", fontsize=9)
    axes[0].set_ylabel("attending", fontsize=9)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    main(Path(__file__).with_suffix(".png"))
