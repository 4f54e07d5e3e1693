"""`w2v-attn convert`: write features in another layout; see conf/convert.yaml."""

import sys
import time
from collections import Counter
from contextlib import closing
from typing import Any

from w2v_attn.cli import console, corpus_run, values
from w2v_attn.cli.process import DONE, INTERRUPTED, SOME_FAILED, TERMINATED, Interruption
from w2v_attn.cli.progress import ProgressLine
from w2v_attn.features.conversion import Conversion, ConversionError, ConversionRequest
from w2v_attn.features.open_features import open_features
from w2v_attn.features.transform import describe_underflow
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.run_stats import flag_name


def run(config: Any) -> int:
    """Convert features, show progress and a summary, and return the exit code."""
    output = values.folder(config, "output")
    request = ConversionRequest(
        layout=values.text(config, "layout"),
        output_dtype=values.text_or_none(config, "output_dtype"),
        layers=tuple(values.list_of(config, "layers")),
        layer_weights=values.layer_weights(config),
        pooling=values.text(config, "pooling"),
        segments=values.path_or_none(config, "segments"),
    )
    features = open_features(values.path(config, "features"))
    conversion = Conversion(features, output, request)
    done, failed, size, code = 0, [], 0, DONE
    underflowed = with_underflow = 0
    flags = Counter[str]()
    started = time.monotonic()
    interruption = Interruption()
    try:
        with (
            interruption,
            closing(conversion.run()) as converting,
            ProgressLine(len(conversion.ids), "recordings") as progress,
        ):
            for converted in converting:
                done += 1
                size += converted.bytes
                underflowed += converted.underflowed
                with_underflow += converted.underflowed > 0
                flags.update(map(flag_name, converted.flags))
                if converted.reason is not None:
                    failed.append((converted.id, converted.reason))
                progress.advance(1, failed=converted.reason is not None)
                if interruption.code is not None and done < len(conversion.ids):
                    code = interruption.code
                    break
    except ConversionError as error:
        print(f"stopped: {error}. Once that is fixed, start again with the same command", file=sys.stderr)
        code = SOME_FAILED
    except KeyboardInterrupt:  # a second signal during a recording
        code = interruption.code or INTERRUPTED

    seconds = time.monotonic() - started
    rows = [
        ("recordings", f"{done - len(failed)} of {len(conversion.ids)}"),
        ("failed", f"{len(failed)}, see {FAILURE_LOG}" if failed else "0"),
        ("layout", f"{features.layout} → {request.layout}"),
        ("tensors", f"{size / 1e6:,.1f} MB, {size / 1e6 / max(seconds, 1e-9):,.0f} MB/s"),
        ("output", str(output)),
    ]
    if underflowed:
        # Without an output_dtype, only sums and means of features in half precision are rounded.
        dtype = request.output_dtype or "half precision"
        rows.append(("underflow", describe_underflow(underflowed, with_underflow, dtype)))
    if done < len(conversion.ids):
        rows.append(("not reached", str(len(conversion.ids) - done)))
    if len(features) > len(conversion.ids):
        rows.append(("without segments", str(len(features) - len(conversion.ids))))
    rows += [("flagged", f"{count:,} × {flag}") for flag, count in flags.most_common()]
    console.show("Converted", rows)
    corpus_run.show_failed("Could not be converted", failed)
    if code in (INTERRUPTED, TERMINATED):
        print("interrupted: all written files are complete; start again with the same command", file=sys.stderr)
    return code or (SOME_FAILED if failed else DONE)
