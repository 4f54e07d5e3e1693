"""The baseline of `suite=cli`: a loop over files with plain transformers, without this package.

python -m w2v_attn.benchmarks.transformers_loop CHECKPOINT AUDIO OUTPUT DTYPE DEVICE BATCH
"""

import sys
from pathlib import Path

import soundfile
import torch
from safetensors.torch import save_file
from transformers import AutoFeatureExtractor, AutoModel

SAMPLE_RATE = 16_000


def main(checkpoint: str, audio: str, output: str, dtype: str, device: str, batch: str) -> None:
    """Write the final features of every wav file in `audio`, in batches sorted by length and padded to the longest."""
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model = model.to(device).eval()  # type: ignore[arg-type]
    Path(output).mkdir(parents=True)
    paths = sorted(Path(audio).glob("*.wav"), key=lambda path: path.stat().st_size)
    size = int(batch)
    for start in range(0, len(paths), size):
        chosen = paths[start : start + size]
        waves = [soundfile.read(path, dtype="float32")[0] for path in chosen]
        inputs = extractor(
            waves, sampling_rate=SAMPLE_RATE, padding=True, return_attention_mask=size > 1, return_tensors="pt"
        )
        inputs["input_values"] = inputs["input_values"].to(model.dtype)
        with torch.inference_mode():
            features = model(**inputs.to(device)).last_hidden_state.cpu()
        for path, wave, rows in zip(chosen, waves, features, strict=True):
            frames = len(rows) if size == 1 else int(model._get_feat_extract_output_lengths(len(wave)))
            save_file({"final": rows[:frames].contiguous()}, Path(output) / f"{path.name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
