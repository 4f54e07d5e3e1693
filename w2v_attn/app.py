"""The commands: what stands on the command line becomes a configuration, and that becomes one call.

The only module that knows Hydra, and the only one that prints.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from w2v_attn import __version__, folders, start_and_end

DONE, SOME_FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
SHOWN = 20  # rows of a table; files have all of them
INPUTS = ("audio", "data.train", "data.valid", "data.test")  # keys that name recordings

USAGE = """\
w2v-attn: wav2vec 2.0's self-attention as a layer of its own, inside any pretrained encoder.

  w2v-attn extract     features from audio, a file for each recording or shards of many
  w2v-attn convert     such features in another layout, selected, pooled, in half precision
  w2v-attn finetune    an encoder trained on your recordings, as a Hugging Face folder
  w2v-attn transcribe  what recordings say, by a fine-tuned checkpoint
  w2v-attn evaluate    how often such a checkpoint is wrong on labelled recordings, and where
  w2v-attn load        load a checkpoint and report what it is; save a copy
  w2v-attn verify      stock transformers against ours on the same weights, stage by stage
  w2v-attn benchmark   our layer, the encoder and the commands against their peers

  w2v-attn COMMAND --help    the keys of a command, with examples
  w2v-attn --version

Try it: `w2v-attn extract` runs without network on the speech and the checkpoint that come with the package."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code: 0 done, 1 some inputs failed, 2 wrong request, 130/143 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        sys.exit(DONE if arguments else WRONG_REQUEST)
    if arguments[0] == "--version":
        print(f"w2v-attn {__version__}")
        sys.exit(DONE)
    command, *overrides = arguments
    if command not in COMMANDS:
        print(f"there is no command {command}\n\n{USAGE}", file=sys.stderr)
        sys.exit(WRONG_REQUEST)
    sys.exit(_run(command, overrides))


# ------------------------------------------------------------------------------------------------- commands


def extract(config: Any) -> int:
    """`w2v-attn extract`, see conf/extract.yaml."""
    _import_model()
    from dataclasses import replace

    from w2v_attn.corpus.listing import list_recordings
    from w2v_attn.extraction.engines.choice import open_extractor
    from w2v_attn.extraction.estimate import DRY_RUN, is_worth_estimating
    from w2v_attn.extraction.extracting import extract_with
    from w2v_attn.extraction.extractor import Job, Task, Worker
    from w2v_attn.extraction.store import store_of
    from w2v_attn.runs.outcomes import RunError
    from w2v_attn.runs.shares import parts_of, read_share, rows_of

    output, layers, layout = _folder(config, "output"), _list(config, "layers"), _text(config, "layout")
    store = store_of(layout)
    share = read_share(None if config.share is None else str(config.share))
    corpus = list_recordings(_text(config, "audio"), root=config.root)
    listed = len(corpus.rows)
    making = _making(config, corpus.rows)
    if making.spans is not None:
        corpus = replace(corpus, rows=tuple(row for row in corpus.rows if row.id in making.spans))
    without = listed - len(corpus.rows)
    mine = replace(corpus, rows=tuple(rows_of(share.of(parts_of(corpus.rows, store.together)))))
    limits = {"max_duration": _number(config, "max_duration"), "decoding": _decoding(config)}
    task = Task(output=output, layers=tuple(layers), layout=layout, making=making, **limits)
    model = _model_options(config) | {"long": _long(config.long)}
    job = Job(checkpoint=_text(config.model, "checkpoint"), model=model, task=task)
    workers = None if config.workers == "auto" else int(_number(config, "workers", least=1))
    frames = channels = 0

    def take(outcome: Any) -> None:
        nonlocal frames, channels
        frames, channels = frames + outcome.result.frames, outcome.result.channels

    try:
        if config.dry_run:
            worker = Worker.of(job)
            worker.check_output()
            _show_estimate(worker.estimate(mine.rows, rehearsal=DRY_RUN), layers)
            return DONE
        with open_extractor(job, engine=str(config.engine), workers=workers, share=share) as extractor:
            # Where others extract, nobody here has an encoder to ask.
            worth = is_worth_estimating(mine.rows)
            ahead = extractor.estimate(mine.rows) if worth and isinstance(extractor, Worker) else None
            about = {"command": _command(), "folder": os.getcwd(), "config": _plain(config)}
            if ahead is not None:
                _show_estimate(ahead, layers)
                about["estimate"] = ahead.as_record()
            run = partial(extract_with, extractor, task, corpus.rows, share=share, about=about)
            tally, seconds, code = _watch(mine, run, take, total=None if ahead is None else ahead.weight)
    except RunError as error:  # before it began
        print(f"stopped: {error}", file=sys.stderr)
        return SOME_FAILED

    described = extractor.description
    unit = "frames" if making.pool == "none" else "vectors"
    rows = [
        ("layers", ", ".join(layers) if making.sum is None else f"sum of {', '.join(layers)}"),
        (unit, f"{frames:,} × {channels} channels, {making.dtype or described.dtype}"),
        ("attention", f"{described.core} core on {described.device}"),
    ]
    if without > 0:
        rows.append(("without segments", str(without)))
    if described.long.kind != "exact":
        rows.append(("long", f"{described.long.kind} of {described.long.seconds:g} s: not exact beyond that"))
    if described.one_by_one is not None:
        rows.append(("one by one", f"for {described.one_by_one}"))
    if share.is_all:
        return _conclude("Extracted", corpus, tally, seconds, code, output, rows)
    _conclude(f"Extracted, share {share}", mine, tally, seconds, code, output, rows)
    return _conclude_shares(output, code)


def _conclude_shares(output: Path, code: int) -> int:
    """The summary of all shares, by the one that ends last; and the exit code of this one.

    Recordings that failed are told by the last one alone. Under torchrun by none: it ends all the others where one does
    not end with 0, and who has nothing to do ends before others have begun. code: of this share, where it did not come
    to its end.
    """
    from w2v_attn import console
    from w2v_attn.runs.record import read_record

    record = read_record(output)
    if record is None or record["status"] == "running":
        return code
    counts, session = record["counts"], record["session"]
    speed = session["audio_seconds"] / max(session["seconds"], 1e-9)
    rows = [
        ("recordings", f"{counts['written'] + counts['kept']:,} of {counts['recordings']:,}"),
        *([("already there", counts["kept"])] if counts["kept"] else []),
        ("failed", counts["failed"]),
        ("audio", f"{session['audio_seconds']:.1f} s, {speed:.1f} × real time"),
        *([("not reached", counts["not_reached"])] if counts["not_reached"] else []),
        ("shares", record["share"]),
        ("output", output),
    ]
    console.console().print(console.table("Extracted by all shares", rows))
    if code or "TORCHELASTIC_RUN_ID" in os.environ:
        return code
    return SOME_FAILED if counts["failed"] or counts["not_reached"] else DONE


def convert(config: Any) -> int:
    """`w2v-attn convert`, see conf/convert.yaml."""
    from w2v_attn import console
    from w2v_attn.feature_sets.converting import Conversion, ConversionError, Request
    from w2v_attn.feature_sets.destination import FAILURES
    from w2v_attn.feature_sets.reading import open_features

    output = _folder(config, "output")
    request = Request(
        layout=_text(config, "layout"),
        dtype=None if config.dtype is None else str(config.dtype),
        layers=tuple(_list(config, "layers")),
        sum=_sum(config),
        pool=_text(config, "pool"),
        segments=None if config.segments is None else _path(config, "segments"),
    )
    features = open_features(_path(config, "features"))
    conversion = Conversion(features, output, request)
    done, failed, size, code = 0, [], 0, DONE
    started = time.monotonic()
    interruption = _Interruption()
    try:
        with (
            interruption,
            closing(conversion.run()) as run,
            console.ProgressLine(len(conversion.ids), "recordings") as progress,
        ):
            for converted in run:
                done += 1
                size += converted.bytes
                if converted.reason is not None:
                    failed.append((converted.id, converted.reason))
                progress.advance(1, failed=converted.reason is not None)
                if interruption.code is not None and done < len(conversion.ids):
                    code = interruption.code
                    break
    except ConversionError as error:
        print(f"stopped: {error}. The same command starts again when that is mended", file=sys.stderr)
        code = SOME_FAILED
    except KeyboardInterrupt:  # the second signal did not wait for the recording at hand
        code = interruption.code or INTERRUPTED

    seconds = time.monotonic() - started
    rows = [
        ("recordings", f"{done - len(failed)} of {len(conversion.ids)}"),
        ("failed", f"{len(failed)}, see {FAILURES}" if failed else "0"),
        ("layout", f"{features.layout} → {request.layout}"),
        ("tensors", f"{size / 1e6:,.1f} MB, {size / 1e6 / max(seconds, 1e-9):,.0f} MB/s"),
        ("output", str(output)),
    ]
    if done < len(conversion.ids):
        rows.append(("not reached", str(len(conversion.ids) - done)))
    if len(features) > len(conversion.ids):
        rows.append(("without segments", str(len(features) - len(conversion.ids))))
    screen = console.console()
    screen.print(console.table("Converted", rows))
    _show_failed("Could not be converted", failed)
    if code in (INTERRUPTED, TERMINATED):
        print("interrupted: what is written is whole; the same command starts again", file=sys.stderr)
    return code or (SOME_FAILED if failed else DONE)


def transcribe(config: Any) -> int:
    """`w2v-attn transcribe`, see conf/transcribe.yaml."""
    _import_model()
    from w2v_attn import console
    from w2v_attn.corpus.listing import list_recordings
    from w2v_attn.pretrained.replace import core_in_use
    from w2v_attn.transcription.files import TRANSCRIPTS
    from w2v_attn.transcription.recognizer import Transcript, load_recognizer
    from w2v_attn.transcription.transcribing import transcribe_corpus

    max_duration, output = _number(config, "max_duration"), _folder(config, "output")
    formats = _list(config, "formats")
    corpus = list_recordings(_text(config, "audio"), root=config.root)
    recognizer = load_recognizer(_text(config.model, "checkpoint"), **_model_options(config), beam=_beam(config))
    limits = {"max_duration": max_duration, "decoding": _decoding(config)}
    run = partial(transcribe_corpus, recognizer, corpus.rows, output, formats=formats, **limits)
    shown: list[tuple[str, str, str]] = []

    def take(outcome: Any) -> None:
        if len(shown) < SHOWN:
            found = outcome.result
            text = found.text if isinstance(found, Transcript) else found.label
            shown.append((outcome.row.id, text, f"{found.score:.2f}"))

    tally, seconds, code = _watch(corpus, run, take)
    more = f" (the first {SHOWN} of {tally.written})" if tally.written > SHOWN else ""
    console.console().print(console.table(f"Heard{more}", shown, header=("recording", "text", "score")))
    rows = [("attention", f"{core_in_use(recognizer.model)} core on {recognizer.device}")]
    return _conclude("Transcribed", corpus, tally, seconds, code, output / TRANSCRIPTS, rows)


def evaluate(config: Any) -> int:
    """`w2v-attn evaluate`, see conf/evaluate.yaml."""
    from dataclasses import replace

    from w2v_attn import console

    _need("finetune", "jiwer", "matplotlib")
    _import_model()
    from w2v_attn.corpus.listing import list_recordings
    from w2v_attn.finetuning.evaluating import evaluate_corpus, task_of
    from w2v_attn.finetuning.evaluation import measure
    from w2v_attn.finetuning.options import CtcOptions
    from w2v_attn.pretrained.replace import core_in_use
    from w2v_attn.transcription.recognizer import load_recognizer

    max_duration, output = _number(config, "max_duration"), _folder(config, "output")
    names = {str(key): str(value) for key, value in (config.names or {}).items()}
    corpus = list_recordings(_text(config, "audio"), root=config.root, pattern=config.pattern, names=names)
    if config.split is not None:
        chosen = tuple(row for row in corpus.rows if row.split == config.split)
        if not chosen:
            raise ValueError(f"no recording is of the split {config.split}")
        corpus = replace(corpus, rows=chosen)
    recognizer = load_recognizer(_text(config.model, "checkpoint"), **_model_options(config), beam=_beam(config))
    task = task_of(recognizer, corpus.rows, CtcOptions(case=str(config.case), remove=str(config.remove or "")))
    limits = {"max_duration": max_duration, "decoding": _decoding(config)}
    run = partial(evaluate_corpus, recognizer, corpus.rows, task, output, **limits)
    predictions: list[Any] = []
    tally, seconds, code = _watch(corpus, run, lambda outcome: predictions.append(outcome.result))
    rows = [("attention", f"{core_in_use(recognizer.model)} core on {recognizer.device}")]
    if predictions:
        wrong = [p for p in sorted(predictions, key=task.error_of, reverse=True) if task.error_of(p) > 0]
        shown = [(p.row.id, p.reference, p.hypothesis) for p in wrong[:SHOWN]]
        more = f" (the worst {SHOWN} of {len(wrong)})" if len(wrong) > SHOWN else ""
        if shown:
            console.console().print(console.table(f"Wrong{more}", shown, header=("recording", "is", "heard")))
        rows += [(name, f"{value:.4f}") for name, value in measure(task, predictions).items()]
    return _conclude("Evaluated", corpus, tally, seconds, code, output, rows)


def _watch(
    corpus: Any, start: Callable[..., Any], take: Callable[[Any], None], total: float | None = None
) -> tuple[Any, float, int]:
    """Goes through a run with progress, until its end or an interruption -> its tally, seconds it took, exit code.

    take: is given the outcomes that have a result, as they come. total: the weight of what is not there yet, where that
    is known; see `runs.sources.row_weight`.
    """
    from w2v_attn import console
    from w2v_attn.runs.outcomes import RunError
    from w2v_attn.runs.pace import Pace
    from w2v_attn.runs.sources import row_weight
    from w2v_attn.runs.tally import Tally

    tally, pace = Tally(), Pace(sum(map(row_weight, corpus.rows)) if total is None else total)
    started = time.monotonic()
    code = DONE
    interruption = _Interruption()
    run = start(interrupted=lambda: interruption.code is not None)
    try:
        with interruption, closing(run), console.RunProgress(len(corpus.rows), pace, tally) as progress:
            for outcome in run:
                tally.take(outcome)
                pace.take(outcome, 0.0 if outcome.kept and total is not None else row_weight(outcome.row))
                progress.update()
                if outcome.result is not None:
                    take(outcome)
    except RunError as error:
        print(f"stopped: {error}. When that is mended, this goes on:\n  {_command()}", file=sys.stderr)
        code = SOME_FAILED
    except KeyboardInterrupt:  # the second signal did not wait for the batch at hand
        pass
    return tally, time.monotonic() - started, interruption.code or code


def _show_estimate(ahead: Any, layers: Sequence[str]) -> None:
    """What a run will take, and a warning where the disk has no room for that."""
    from w2v_attn import console

    known = f"of {ahead.looked_at:,} headers" if ahead.looked_at < ahead.recordings else "of all headers"
    spread = f" ± {ahead.spread:.1%}" if ahead.spread >= 5e-4 else ""
    rows = [
        ("recordings", f"{ahead.recordings:,}"),
        ("audio", f"{console.span(ahead.audio)}{spread}, {known}"),
        ("to write", f"{ahead.files:,} files, {console.size(ahead.bytes)}: {', '.join(layers)} in {ahead.dtype}"),
        ("time", f"about {console.span(ahead.seconds)}"),
    ]
    if ahead.there:
        rows.insert(1, ("already there", f"about {ahead.there:,}"))
        rows.insert(3, ("to compute", console.span(ahead.missing)))
    if ahead.unusable:
        rows.insert(1, ("cannot be used", f"about {ahead.unusable:,}"))
    if ahead.free is not None:
        rows.append(("free on the disk", console.size(ahead.free)))
    console.console().print(console.table("Estimated", rows))
    if ahead.free is not None and ahead.disk > ahead.free:
        print(
            f"warning: the features will take about {console.size(ahead.disk)}, and the disk of the output has "
            f"{console.size(ahead.free)} free. Fewer layers or half precision take less; a run that a full disk ends "
            "goes on when there is room again",
            file=sys.stderr,
        )
    if ahead.free_files is not None and ahead.files > ahead.free_files:
        print(
            f"warning: about {ahead.files:,} files will be written, and the disk of the output has room for "
            f"{ahead.free_files:,}. layout=shards makes few large ones",
            file=sys.stderr,
        )


def _show_failed(title: str, failed: Sequence[tuple[str, str]]) -> None:
    """A table of recordings with the reasons; of many the first."""
    from w2v_attn import console

    if failed:
        more = f" (the first {SHOWN} of {len(failed)})" if len(failed) > SHOWN else ""
        console.console().print(console.table(f"{title}{more}", failed[:SHOWN], header=("recording", "reason")))


def _show_kinds(title: str, tally: Any) -> None:
    """A table of what failed: every recording with its reason, or of many the kinds of reasons with one of each."""
    from w2v_attn import console

    if tally.failed <= len(tally.few):
        _show_failed(title, tally.few)
        return
    kinds = tally.kinds.most_common(SHOWN)
    more = f" (the {SHOWN} most frequent of {len(tally.kinds):,} reasons)" if len(tally.kinds) > SHOWN else ""
    rows = []
    for kind, count in kinds:
        row_id, reason = tally.examples[kind]
        rows.append((f"{count:,} ×", reason if count == 1 else kind, row_id))
    header = ("recordings", "reason", "one of them")
    console.console().print(console.table(f"{title}: {tally.failed:,}{more}", rows, header=header))


def _conclude(
    title: str, corpus: Any, tally: Any, wall: float, code: int, output: Path, rows: list[tuple[str, str]]
) -> int:
    """The summary of a run, and its exit code."""
    from w2v_attn import console
    from w2v_attn.runs.ledger import LEDGER

    missing = len(corpus.rows) - tally.reached
    wall = max(wall, 1e-9)
    summary = [
        ("recordings", f"{tally.written + tally.kept:,} of {len(corpus.rows):,}"),
        ("failed", f"{tally.failed:,}, see {LEDGER}" if tally.failed else "0"),
        ("audio", f"{tally.seconds:,.1f} s, {tally.seconds / wall:.1f} × real time"),
        ("time", f"{console.span(wall)}, {tally.written / wall:,.1f} recordings/s"),
        *rows,
        ("output", str(output)),
    ]
    if tally.kept:
        summary.insert(1, ("already there", f"{tally.kept:,}"))
    if missing:
        summary.append(("not reached", f"{missing:,}"))
    if corpus.skipped:
        summary.append(("no audio", ", ".join(f"{count} × {kind}" for kind, count in corpus.skipped.most_common(5))))
    summary += [("flagged", f"{count:,} × {flag}") for flag, count in tally.flags.most_common(5)]
    screen = console.console()
    screen.print(console.table(title, summary))
    _show_kinds("Could not be used", tally)
    if code in (INTERRUPTED, TERMINATED):
        print(f"interrupted: what is written is whole. To go on:\n  {_command()}", file=sys.stderr)
    return code or (SOME_FAILED if tally.failed else DONE)


def finetune(config: Any) -> int:
    """`w2v-attn finetune`, see conf/finetune.yaml."""
    from w2v_attn import console

    _need("finetune", "accelerate", "jiwer", "matplotlib", "tensorboard")
    _import_model()
    from w2v_attn.finetuning import run
    from w2v_attn.finetuning.errors import TrainingError

    output, recipe = _folder(config, "output"), _recipe(config)
    screen = console.console()
    code = DONE
    with _Interruption() as interruption, console.TrainingProgress(lambda: interruption.code is not None) as watcher:
        try:
            done = run.finetune(recipe, output, watcher)
        except TrainingError as error:
            print(f"stopped: {error}", file=sys.stderr)
            return SOME_FAILED
        except KeyboardInterrupt:
            return interruption.code or INTERRUPTED
        finally:
            run.leave_other_processes()
    if done.interrupted:
        print("interrupted: a checkpoint is saved; the same command goes on from it", file=sys.stderr)
        return interruption.code or TERMINATED
    if not _is_first_process():
        return DONE
    for split, metrics in done.metrics.items():
        screen.print(console.table(f"On {split}", [(name, f"{value:.4f}") for name, value in metrics.items()]))
    if done.warning is not None:
        print(f"warning: {done.warning}", file=sys.stderr)
        code = SOME_FAILED
    rows = [("best update", str(done.update)), ("time", f"{done.seconds:.0f} s"), ("model", str(output))]
    screen.print(console.table("Fine-tuned", rows))
    return code


def load(config: Any) -> int:
    """`w2v-attn load`, see conf/load.yaml."""
    _import_model()
    from w2v_attn import console
    from w2v_attn.encoder.waveforms import find_device
    from w2v_attn.pretrained.checkpoints import load_checkpoint
    from w2v_attn.pretrained.copies import check_destination, check_form, save_copy
    from w2v_attn.pretrained.description import describe
    from w2v_attn.pretrained.replace import core_in_use, replace_attention

    output = None if config.output is None else _path(config, "output")
    form = str(config.form)
    check_form(form)
    if output is not None:
        check_destination(output)
    elif form != "huggingface":
        raise ValueError(f"form={form} is that of a copy: say where it goes with output=FOLDER")
    device = find_device(str(config.device))
    checkpoint = load_checkpoint(
        _text(config.model, "checkpoint"),
        revision=config.model.revision,
        language=_language(config.model),
        dtype=str(config.dtype),
        with_head=True,
    )
    if output is not None:
        save_copy(checkpoint, output, form=form)
    model = replace_attention(checkpoint.model, backend=config.attention.backend).to(device)
    rows: list[tuple[str, object]] = [*describe(checkpoint), ("attention core", f"{core_in_use(model)}, on {device}")]
    if output is not None:
        rows.append(("saved to", output))
    console.console().print(console.table(f"Loaded {checkpoint.source}", rows))
    return DONE


def verify(config: Any) -> int:
    """`w2v-attn verify`, see conf/verify.yaml."""
    _import_model()
    from w2v_attn import console
    from w2v_attn.benchmarks.results import check_destination, circumstances, write_json
    from w2v_attn.corpus.listing import list_recordings
    from w2v_attn.encoder.waveforms import find_device
    from w2v_attn.parity import report, verifying

    if config.show not in ("stages", "summary"):
        raise ValueError(f"show must be stages or summary, got {config.show}")
    output = None if config.output is None else _path(config, "output")
    if output is not None:
        check_destination(output)
    request = verifying.Request(
        checkpoint=_text(config.model, "checkpoint"),
        revision=config.model.revision,
        language=_language(config.model),
        rows=list_recordings(_text(config, "audio"), root=config.root).rows,
        count=int(_number(config, "recordings", least=1)),
        seconds=_number(config, "seconds"),
        dtypes=_list(config, "dtypes"),
        device=find_device(str(config.device)),
        backend=config.attention.backend,
    )
    try:
        with console.ProgressLine(request.cost, "steps") as progress:
            found = verifying.verify(request, partial(progress.advance, failed=False))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    screen = console.console()
    for title, header, rows in report.tables(found, stages=config.show == "stages"):
        screen.print(console.table(title, rows, header=header))
    for line in report.sentences(found):
        print(line)
    for line in report.broken(found):
        print(line, file=sys.stderr)
    if output is not None:
        print(f"written: {write_json(report.as_record(found) | circumstances(request.device), output)}")
    return DONE if found.holds else SOME_FAILED


def benchmark(config: Any) -> int:
    """`w2v-attn benchmark`, see conf/benchmark.yaml."""
    _import_model()
    from w2v_attn import console
    from w2v_attn.benchmarks.results import check_destination, write_json
    from w2v_attn.encoder.waveforms import find_device
    from w2v_attn.pretrained.checkpoints import DTYPES

    if config.what not in BENCHMARKS:
        raise ValueError(f"what must be {' or '.join(BENCHMARKS)}, got {config.what}")
    if config.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {config.dtype}")
    output = None if config.output is None else _path(config, "output")
    if output is not None:
        check_destination(output)
    common = {
        "rounds": int(config.rounds),
        "device": find_device(str(config.device)),
        "tell": lambda line: print(line, file=sys.stderr, flush=True),
    }
    measured, report = BENCHMARKS[config.what](config, common)
    screen = console.console()
    for title, header, rows in measured.tables(report):
        screen.print(console.table(title, rows, header=header))
    if output is not None:
        print(f"written: {write_json(report, output)}")
        if config.what == "encoder":
            _draw(report, output.with_suffix(".png"))
    return DONE


def _draw(report: dict[str, Any], path: Path) -> None:
    """A picture of a report, where the library for it is installed."""
    try:
        from w2v_attn.benchmarks.pictures import draw
    except ImportError:
        print("not drawn: pip install 'w2v_attn[benchmark]'", file=sys.stderr)
    else:
        print(f"written: {draw(report, path)}")


def _benchmark_attention(config: Any, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from w2v_attn.benchmarks import attention

    frames, batch = _list(config, "frames", int), int(config.batch)
    return attention, attention.run(frames=frames, batch=batch, dtype=str(config.dtype), **_block(config), **common)


def _benchmark_training(config: Any, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    _need("finetune", "accelerate", "jiwer", "matplotlib")
    from w2v_attn.benchmarks import training

    lengths, layers = _list(config, "seconds", float), int(config.layers)
    return training, training.run(lengths=lengths, layers=layers, **_block(config), **common)


def _benchmark_encoder(config: Any, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from w2v_attn.benchmarks import encoder, recordings

    report = encoder.run(
        size=str(config.size),
        sets=recordings.sets(_list(config, "sets"), _number(config, "long_seconds")),
        peers=_list(config, "peers"),
        highest=None if config.highest is None else str(config.highest),
        dtype=str(config.dtype),
        **common,
    )
    return encoder, report


def _benchmark_cli(config: Any, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from w2v_attn.benchmarks import cli, recordings

    return cli, cli.run(size=str(config.size), durations=recordings.RAGGED, dtype=str(config.dtype), **common)


def _block(config: Any) -> dict[str, Any]:
    """The block of attention that is timed."""
    return {
        "channels": int(config.channels),
        "heads": int(config.heads),
        "dropouts": _list(config, "dropouts", float),
    }


def _benchmark_long(config: Any, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from w2v_attn.benchmarks import long

    options = {"duration": _number(config, "long_seconds"), "widths": _list(config, "widths", float)}
    return long, long.run(checkpoint=_text(config, "checkpoint"), audio=_text(config, "audio"), **options, **common)


# Kind -> what measures it: (the module that can show the report, the report).
BENCHMARKS: dict[str, Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]] = {
    "attention": _benchmark_attention,
    "training": _benchmark_training,
    "encoder": _benchmark_encoder,
    "cli": _benchmark_cli,
    "long": _benchmark_long,
}


COMMANDS: dict[str, Callable[[Any], int]] = {
    "extract": extract,
    "convert": convert,
    "evaluate": evaluate,
    "finetune": finetune,
    "transcribe": transcribe,
    "load": load,
    "verify": verify,
    "benchmark": benchmark,
}


# ---------------------------------------------------------------------------------------------------- Hydra


def _run(command: str, overrides: list[str]) -> int:
    """Composes the configuration of a command and runs it; a wrong request is told in a few lines, without a trace."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers()
    # Hydra turns every error into exit code 1 unless it is told to let them through.
    if (repeated := _repeated(command, overrides)) is not None:
        print(repeated, file=sys.stderr)
        return WRONG_REQUEST
    asked = os.environ.get("HYDRA_FULL_ERROR")
    wants_trace = asked == "1"
    codes: list[int] = []
    here = os.getpid()

    def task(config: Any) -> None:
        is_one_of_a_sweep = _name_job(command, overrides)
        code = _checked(command, config, wants_trace)
        if os.getpid() != here and code != DONE:
            raise JobEnded(code)  # what a job returns, Hydra leaves where it ran
        codes.append(code)
        if is_one_of_a_sweep and code in (INTERRUPTED, TERMINATED):
            raise KeyboardInterrupt  # no other job begins

    os.environ["HYDRA_FULL_ERROR"] = "1"
    program, sys.argv = sys.argv, [f"w2v-attn {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(folders.find("conf")), config_name=command)(task)()
    except JobEnded as ended:
        codes.append(ended.code)
    except KeyboardInterrupt:
        codes.append(INTERRUPTED)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if wants_trace:
            raise
        print(_explain(command, overrides, error), file=sys.stderr)
        return WRONG_REQUEST
    finally:
        sys.argv = program
        os.environ["HYDRA_FULL_ERROR"] = asked or "0"
    return max(codes, default=DONE)  # --help and --cfg run no task


class JobEnded(Exception):  # noqa: N818 - it may have done most of its work
    """A job of a sweep in another process ended with another code than 0. Launchers bring the first of them here."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"exit code {self.code}"


def _name_job(command: str, overrides: Sequence[str]) -> bool:
    """Whether this is a job of a sweep. It is known from here on by what it is without the others."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return False
    flags = [part for part in overrides if "=" not in part and part[:1] != "~" and part not in ("-m", "--multirun")]
    sys.argv = [f"w2v-attn {command}", *flags, *settings.overrides.task]
    return True


def _register_resolvers() -> None:
    """What configurations can say beside Hydra's own: `${embedded:speech}`, which comes with the package."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("embedded", lambda name: str(folders.find("data") / name), replace=True)


def _checked(command: str, config: Any, wants_trace: bool) -> int:
    """Runs a command on a composed configuration; what a user can cause is told without a trace."""
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        print(
            f"no value for {', '.join(missing)}: give {missing[0]}=VALUE. See w2v-attn {command} --help",
            file=sys.stderr,
        )
        return WRONG_REQUEST
    _log_to_stderr()
    try:
        return COMMANDS[command](config)
    except KeyboardInterrupt:  # before there was anything to end in order
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:  # all that a user can cause is one; HYDRA_FULL_ERROR=1 shows where it came from
        if wants_trace:
            raise
        print(error, file=sys.stderr)
        return WRONG_REQUEST


def _repeated(command: str, overrides: list[str]) -> str | None:
    """What to say where recordings are named more than once, of which Hydra would take the last without a word."""
    for key in INPUTS:
        given = [override for override in overrides if override.startswith(f"{key}=")]
        if len(given) > 1:
            return (
                f"{key} is given {len(given)} times: {given[0]} … {given[-1]}. One is expected: a folder, a manifest "
                f"that lists them, or, where the shell took braces for its own, shards in quotes:\n\n"
                f"  w2v-attn {command} '{key}=\"corpus-{{000..123}}.tar\"'\n"
            )
    return None


def _explain(command: str, overrides: list[str], error: Exception) -> str:
    """A wrong override, said so that the next try is right."""
    import difflib
    import re

    text = str(error).split("Config search path")[0].strip()
    unread = getattr(error, "override", None)  # the one that Hydra's grammar stumbled over
    for override in overrides:
        key, equals, value = override.partition("=")
        if (
            key
            and equals
            and (override == unread or override in text)
            and not re.fullmatch(r"[\w./:+@%-]*", value, re.ASCII)
        ):
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            return (
                f"{override}: has characters that Hydra reads as its own ( = , ( [ {{ é ~ spaces …).\n"
                f"Quote the value for Hydra, and all of it for the shell:\n\n"
                f"  w2v-attn {command} '{key}=\"{quoted}\"'\n"
            )
    unknown = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", text)
    if unknown:
        wrong = next((o.partition("=")[0].lstrip("+~") for o in overrides if unknown[1] and unknown[1] in o), None)
        wrong = wrong or unknown[2] or unknown[1]
        known = _keys(command)
        close = difflib.get_close_matches(wrong, known, 1, 0.5)
        hint = f"Did you mean {close[0]}?" if close else f"Known keys: {', '.join(known)}."
        return f"there is no key {wrong}. {hint} See w2v-attn {command} --help"
    return f"{text}\nSee w2v-attn {command} --help"


def _keys(command: str) -> list[str]:
    """All keys of a command, as they stand on the command line."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.initialize import initialize_config_dir
    from omegaconf import DictConfig

    def walk(node: DictConfig, before: str) -> list[str]:
        keys = []
        for name in node:
            below = node._get_node(name)
            keys.append(f"{before}{name}")
            if isinstance(below, DictConfig):
                keys += walk(below, f"{before}{name}.")
        return keys

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folders.find("conf")), version_base="1.3"):
        return walk(compose(command), "")


# -------------------------------------------------------------------------------------------------- helpers


class _Interruption:
    """While open, Ctrl-C or SIGTERM asks the run to end after what it has at hand; a second one ends it at once.

    code: the exit code of what arrived; None as long as nothing did.
    """

    def __init__(self) -> None:
        self.code: int | None = None

    def __enter__(self) -> "_Interruption":
        self._before = {number: signal.signal(number, self._arrived) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: object) -> None:
        if self.code is not None:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED


def _recipe(config: Any) -> Any:
    """The configuration of `finetune` as a typed recipe; a value of the wrong type is told with its key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from w2v_attn.finetuning import options
    from w2v_attn.finetuning.tasks.choice import TASKS

    def typed(kind: type, section: str) -> Any:
        values = OmegaConf.to_container(config[section], resolve=True)
        try:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
        except OmegaConfBaseException as error:
            raise ValueError(f"{section}.{error.full_key}: {str(error).splitlines()[0]}") from error

    task = config.task.kind
    if task not in TASKS:
        raise ValueError(f"task.kind must be one of {', '.join(TASKS)}, got {task}")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    del config.task.kind
    model = plain["model"]
    return options.Recipe(
        task=typed(TASKS[task][0], "task"),
        data=typed(options.DataOptions, "data"),
        checkpoint=model["checkpoint"],
        revision=model["revision"],
        language=_language(model),
        config=model.get("config", {}),
        backend=plain["attention"]["backend"],
        device=str(plain["device"]),
        seed=int(_number(config, "seed", least=0)),
        regularization=typed(options.RegularizationOptions, "regularization"),
        augmentation=typed(options.AugmentationOptions, "augmentation"),
        optimizer=typed(options.OptimizerOptions, "optimizer"),
        training=typed(options.TrainingOptions, "training"),
    )


def _command() -> str:
    """The command as it was given, to be given again."""
    import shlex

    return shlex.join([*sys.argv[0].split(" "), *sys.argv[1:]])


def _plain(config: Any) -> Any:
    """A configuration as plain values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True)


def _beam(config: Any) -> Any:
    """How to search with a language model; None where there is none."""
    from w2v_attn.transcription.beam_search import BeamOptions

    beam = config.beam
    if beam.language_model is None:
        return None
    return BeamOptions(
        language_model=_path(beam, "language_model"),
        lexicon=None if beam.lexicon is None else _path(beam, "lexicon"),
        beam=int(beam.beam),
        weight=float(beam.weight),
        word_score=float(beam.word_score),
    )


def _decoding(config: Any) -> Any:
    """Where and within which limits recordings are decoded."""
    from w2v_attn.runs.decoding import Decoding

    decoding = config.decoding
    apart = {name: _number(decoding, name) for name in ("seconds", "gigabytes") if name in decoding}
    rates, channels = _list(decoding, "rates", int), int(_number(decoding, "max_channels"))
    return Decoding(kind=str(decoding.kind), rates=tuple(rates), max_channels=channels, **apart)


def _import_model() -> None:
    """What takes most of the start of a command that has a model, at once."""
    start_and_end.import_to_stay("transformers.models.auto.modeling_auto", "w2v_attn.pretrained.replace")


def _need(extra: str, *modules: str) -> None:
    """Raises ValueError where modules of an extra are not installed."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"this command needs {', '.join(missing)}: pip install 'w2v_attn[{extra}]'")


def _is_first_process() -> bool:
    """Whether this is the process of torchrun that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _text(config: Any, key: str) -> str:
    value = config[key]
    if value is None or not str(value):
        raise ValueError(f"{key} is empty: give {key}=VALUE")
    return str(value)


def _path(config: Any, key: str) -> Path:
    return Path(os.path.expanduser(_text(config, key)))


def _folder(config: Any, key: str) -> Path:
    path = _path(config, key)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{key}={path} is a file: name a folder")
    return path


def _model_options(config: Any) -> dict[str, Any]:
    """What loading a model takes beside its checkpoint."""
    return {
        "revision": config.model.revision,
        "language": _language(config.model),
        "dtype": str(config.dtype),
        "device": str(config.device),
        "backend": config.attention.backend,
    }


def _long(long: Any) -> Any:
    """How long recordings are taken."""
    from w2v_attn.encoder.long import Long

    return Long(kind=str(long.kind), seconds=float(long.seconds), overlap=float(long.overlap))


def _language(model: Any) -> str | None:
    """`model.language` as text: Hydra reads nan, which is Min Nan Chinese, as a number."""
    language = model["language"]
    return None if language is None else str(language)


def _sum(config: Any) -> str | tuple[float, ...] | None:
    """Weights, or what says which they are."""
    return config.sum if config.sum is None or isinstance(config.sum, str) else tuple(_list(config, "sum", float))


def _making(config: Any, rows: Sequence[Any]) -> Any:
    """What extraction makes of the layers of these rows; a `Making`."""
    from w2v_attn.feature_sets.making import Making
    from w2v_attn.feature_sets.segments import read_segments

    pool, segments = _text(config, "pool"), None
    if config.segments is not None and pool != "none":
        segments = read_segments(_path(config, "segments"), [row.id for row in rows])
    elif config.segments is not None:
        raise ValueError("segments are what is pooled over: give pool=mean or pool=statistics")
    store = None if config.store is None else str(config.store)
    return Making(dtype=store, key="store", sum=_sum(config), pool=pool, spans=segments)


def _list(config: Any, key: str, kind: Callable[[Any], Any] = str) -> list[Any]:
    """A list that may be given as its only element."""
    value = config[key]
    if isinstance(value, str | int | float):
        value = [value]
    try:
        return [kind(element) for element in value]
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a list such as {key}=[a,b], got {value}") from None


def _number(config: Any, key: str, *, least: float | None = None) -> float:
    try:
        value = float(config[key])
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number, got {config[key]}") from None
    if least is not None:
        if not value >= least:
            raise ValueError(f"{key} must be {least:g} or above, got {config[key]}")
    elif not value > 0:
        raise ValueError(f"{key} must be above 0, got {config[key]}")
    return value


def _log_to_stderr() -> None:
    """Warnings of ours and of the libraries, each a line; with its time where it may go into a file."""
    import logging

    at = "" if sys.stderr.isatty() else "%(asctime)s "
    form = f"{at}%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)


if __name__ == "__main__":
    main()
