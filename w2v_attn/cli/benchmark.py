"""`w2v-attn benchmark`: ours against peers, see conf/benchmark.yaml."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from w2v_attn.benchmarks import attention_suite, cli_suite, encoder_suite, long_form_suite, workload
from w2v_attn.benchmarks.results import check_output, draw_encoder_report, write_json
from w2v_attn.cli import console, extras, values
from w2v_attn.cli.exit_codes import DONE
from w2v_attn.dtypes import DTYPES
from w2v_attn.encoder.waveforms import find_device

Report = dict[str, Any]


def run(config: Any) -> int:
    """Measures, shows tables, and writes the figures that are asked for."""
    if config.suite not in MEASURED:
        raise ValueError(f"suite must be {' or '.join(MEASURED)}, got {config.suite}")
    if config.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {config.dtype}")
    output = values.path_or_none(config, "output")
    if output is not None:
        check_output(output)
    common = {
        "rounds": int(config.rounds),
        "device": find_device(str(config.device)),
        "log": lambda line: print(line, file=sys.stderr, flush=True),
    }
    measured, report = MEASURED[config.suite](config, common)
    written = None if output is None else write_json(report, output)  # first: what is shown may find no reader
    for title, header, rows in measured.tables(report):
        console.show(title, rows, header=header)
    if written is not None:
        print(f"written: {written}")
        if config.suite == "encoder":
            _draw(report, written.with_suffix(".png"))
    return DONE


def _draw(report: Report, path: Path) -> None:
    """Draw a report if matplotlib is installed."""
    try:
        written = draw_encoder_report(report, path)
    except ImportError:
        print("not drawn: pip install 'w2v_attn[benchmark]'", file=sys.stderr)
    else:
        print(f"written: {written}")


def _attention(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    frames, batch = values.list_of(config, "frames", int), int(config.batch)
    return attention_suite, attention_suite.run(
        frames=frames, batch=batch, dtype=str(config.dtype), **_block(config), **common
    )


def _training(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    extras.need("finetune", "accelerate", "jiwer", "matplotlib")
    from w2v_attn.benchmarks import training_suite

    lengths, layers, freeze = values.list_of(config, "seconds", float), int(config.layers), str(config.freeze)
    return training_suite, training_suite.run(lengths=lengths, layers=layers, freeze=freeze, **_block(config), **common)


def _encoder(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    report = encoder_suite.run(
        size=str(config.size),
        sets=workload.recording_sets(values.list_of(config, "sets"), values.number(config, "long_seconds")),
        peers=values.list_of(config, "peers"),
        up_to=values.text_or_none(config, "up_to"),
        dtype=str(config.dtype),
        **common,
    )
    return encoder_suite, report


def _cli(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    return cli_suite, cli_suite.run(size=str(config.size), durations=workload.RAGGED, dtype=str(config.dtype), **common)


def _long_form(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    report = long_form_suite.run(
        checkpoint=values.text(config, "checkpoint"),
        audio=values.text(config, "audio"),
        duration=values.number(config, "long_seconds"),
        widths=values.list_of(config, "widths", float),
        **common,
    )
    return long_form_suite, report


def _block(config: Any) -> dict[str, Any]:
    """The block of attention that is timed."""
    return {
        "channels": int(config.channels),
        "heads": int(config.heads),
        "dropouts": values.list_of(config, "dropouts", float),
    }


# `suite` -> what measures it: (the module that can show the report, the report).
MEASURED: dict[str, Callable[[Any, dict[str, Any]], tuple[Any, Report]]] = {
    "attention": _attention,
    "training": _training,
    "encoder": _encoder,
    "cli": _cli,
    "long_form": _long_form,
}
