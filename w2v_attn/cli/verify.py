"""`w2v-attn verify`: compare our implementation with stock transformers on the same weights; see conf/verify.yaml."""

import sys
from functools import partial
from typing import Any

from w2v_attn.benchmarks.results import check_output, run_environment, write_json
from w2v_attn.cli import console, values
from w2v_attn.cli.demo import warn_of_demo
from w2v_attn.cli.process import DONE, INTERRUPTED, SOME_FAILED
from w2v_attn.cli.progress import ProgressLine
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.encoder.waveforms import find_device
from w2v_attn.verification import report, verifier
from w2v_attn.verification.request import VerificationRequest


def run(config: Any) -> int:
    """Compare both implementations, show progress and the result, and return 0 where all bounds hold."""
    if config.show not in ("stages", "summary"):
        raise ValueError(f"show must be stages or summary, got {config.show}")
    output = values.path_or_none(config, "output")
    if output is not None:
        check_output(output)
    request = VerificationRequest(
        checkpoint=values.text(config, "model.checkpoint"),
        revision=config.model.revision,
        language=values.language(config.model),
        base_model=values.text_or_none(config, "model.base_model"),
        rows=list_recordings(values.sources(config, "audio"), root=config.root, columns=values.columns(config)).rows,
        count=int(values.number(config, "recordings", minimum=1)),
        seconds=values.number(config, "seconds"),
        dtypes=values.list_of(config, "dtypes"),
        device=find_device(str(config.device)),
        backend=config.attention.backend,
    )
    warn_of_demo(request.checkpoint, request.rows)
    try:
        with ProgressLine(request.cost, "steps") as progress:
            found = verifier.verify(request, partial(progress.advance, failed=False))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    written = None
    if output is not None:  # before printing, which may break a pipe
        written = write_json(report.as_record(found) | run_environment(request.device), output)
    print(report.verdict(found))
    for title, header, rows in report.tables(found, stages=config.show == "stages"):
        console.show(title, rows, header=header)
    for line in report.sentences(found):
        print(line)
    for line in report.broken(found):
        print(line, file=sys.stderr)
    if written is not None:
        print(f"written: {written}")
    return DONE if found.holds else SOME_FAILED
