"""`w2v-attn load`: report what a checkpoint is and convert it; see conf/load.yaml."""

from collections.abc import Sequence
from typing import Any

from w2v_attn.checkpoints.description import describe_checkpoint
from w2v_attn.checkpoints.encoder_parts import encoder_config
from w2v_attn.checkpoints.export import check_export_folder, check_export_format, export_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.cli import console, values
from w2v_attn.cli.process import DONE
from w2v_attn.encoder.layers import layer_names
from w2v_attn.encoder.waveforms import WaveformModel, find_device
from w2v_attn.patching.replace import backend_in_use


def run(config: Any) -> int:
    """Load a checkpoint, save the requested copy, show what was loaded, and return the exit code."""
    output, format = values.path_or_none(config, "output"), str(config.format)
    check_export_format(format)
    if output is not None:
        check_export_folder(output)
    elif format != "huggingface":
        raise ValueError(f"format={format} is the format of a copy: name its folder with output=FOLDER")
    device = find_device(str(config.device))
    checkpoint = load_checkpoint(
        values.text(config, "model.checkpoint"),
        revision=config.model.revision,
        language=values.language(config.model),
        base_model=values.text_or_none(config, "model.base_model"),
        dtype=str(config.dtype),
        with_head=True,
        as_wav2vec2=format == "wav2vec2",
    )
    if output is not None:
        export_checkpoint(checkpoint, output, format=format)
    model = WaveformModel(checkpoint, device=device, backend=config.attention.backend)
    rows: list[tuple[str, object]] = [
        *describe_checkpoint(checkpoint),
        ("layers", _layers(layer_names(encoder_config(model.config).num_hidden_layers))),
        ("frame rate", _frame_rates(model)),
        ("attention", f"{backend_in_use(model.model)} on {device}"),
    ]
    if output is not None:
        rows.append(("saved to", output))
    console.show(f"Loaded {checkpoint.source}", rows)
    return DONE


def _frame_rates(model: WaveformModel) -> str:
    """Return the frames per second of the layers, and the shortest recording that gives one."""
    blocks, final = model.frame_rate("embed"), model.frame_rate("final")
    rates = f"{final:g} frames/s" if blocks == final else f"{blocks:g} frames/s, final {final:g} frames/s"
    return f"{rates}; a frame needs {model.input.min_samples} samples"


def _layers(names: Sequence[str]) -> str:
    """Return layer names separated by commas; many are shortened, as in `embed, layer_01 … layer_24, final`."""
    return ", ".join(names) if len(names) <= 8 else f"{names[0]}, {names[1]} … {names[-2]}, {names[-1]}"
