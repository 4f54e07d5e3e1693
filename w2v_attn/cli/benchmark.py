"""`w2v-attn benchmark`: time our code against its peers; see conf/benchmark.yaml."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from w2v_attn.benchmarks import attention_suite, cli_suite, encoder_suite, long_form_suite, memory_suite, workload
from w2v_attn.benchmarks.results import check_output, draw_encoder_report, write_json
from w2v_attn.cli import console, values
from w2v_attn.cli.process import DONE, need
from w2v_attn.dtypes import DTYPES
from w2v_attn.encoder.waveforms import find_device

Report = dict[str, Any]


def run(config: Any) -> int:
    """Run a benchmark, show its tables, write the report if requested, and return the exit code."""
    if config.suite not in MEASURED:
        raise ValueError(f"suite must be {' or '.join(MEASURED)}, got {config.suite}")
    if config.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {config.dtype}")
    output = values.path_or_none(config, "output")
    if output is not None:
        check_output(output)
    common = {
        "rounds": int(values.number(config, "rounds", minimum=1)),
        "device": find_device(str(config.device)),
        "log": lambda line: print(line, file=sys.stderr, flush=True),
    }
    measured, report = MEASURED[config.suite](config, common)
    written = None if output is None else write_json(report, output)  # before printing, which may break a pipe
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
    frames, batch = values.list_of(config, "frames", int), int(values.number(config, "batch", minimum=1))
    return attention_suite, attention_suite.run(
        frames=frames, batch=batch, dtype=str(config.dtype), **_block(config), **common
    )


def _training(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    need("finetune", "accelerate", "jiwer", "matplotlib")
    from w2v_attn.benchmarks import training_suite

    lengths, layers, freeze = (
        values.list_of(config, "seconds", float),
        int(values.number(config, "layers", minimum=1)),
        str(config.freeze),
    )
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


def _memory(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    report = memory_suite.run(
        size=str(config.size),
        dtype=str(config.dtype),
        duration=values.number(config, "memory_seconds"),
        peers=values.list_of(config, "peers"),
        **common,
    )
    return memory_suite, report


def _long_form(config: Any, common: dict[str, Any]) -> tuple[Any, Report]:
    report = long_form_suite.run(
        checkpoint=values.text(config, "checkpoint"),
        base_model=values.text_or_none(config, "base_model"),
        audio=values.text(config, "audio"),
        duration=values.number(config, "long_seconds"),
        widths=values.list_of(config, "widths", float),
        **common,
    )
    return long_form_suite, report


def _block(config: Any) -> dict[str, Any]:
    """Return the sizes of the attention block that is timed."""
    return {
        "channels": int(values.number(config, "channels", minimum=1)),
        "heads": int(values.number(config, "heads", minimum=1)),
        "dropouts": values.list_of(config, "dropouts", float),
    }


# `suite` -> a function that returns (the module that turns the report into tables, the report).
MEASURED: dict[str, Callable[[Any, dict[str, Any]], tuple[Any, Report]]] = {
    "attention": _attention,
    "training": _training,
    "encoder": _encoder,
    "cli": _cli,
    "memory": _memory,
    "long_form": _long_form,
}
