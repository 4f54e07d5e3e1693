"""The benchmark measures what it reports, checks that results agree, and writes a report."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from w2v_attn import load_encoder
from w2v_attn.benchmarks import (
    attention_suite,
    cli_suite,
    encoder_suite,
    measurement,
    memory_suite,
    transformers_loop,
    workload,
)
from w2v_attn.benchmarks.measurement import peak_bytes_of, seconds_of
from w2v_attn.benchmarks.peers import contender, pytorch_peers, registry
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.cli import app
from w2v_attn.encoder.cost import operations


@pytest.fixture(scope="module", autouse=True)
def no_more_rounds_than_asked_for():
    """Limit the rounds of short calls: the tests do not depend on their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_suite, "MIN_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def report():
    return attention_suite.run(
        frames=[23, 40],
        channels=24,
        heads=4,
        batch=2,
        dropouts=[0.0, 0.1],
        rounds=2,
        device=torch.device("cpu"),
        dtype="float32",
        log=lambda _: None,
    )


def test_ours_and_every_peer_are_measured_at_every_length(report):
    seen = {(f["contender"], f["frames"], f["dropout"], f["what"]) for f in report["figures"]}
    for frames in (23, 40):
        for name in ("w2v_attn tiled", "Hugging Face eager", "Hugging Face sdpa", "torch.nn.MultiheadAttention"):
            assert (name, frames, 0.0, "forward") in seen
            assert (name, frames, 0.0, "forward+backward") in seen
            assert (name, frames, 0.1, "forward+backward") in seen
        assert ("w2v_attn sdpa", frames, 0.0, "forward") in seen
    assert not report["skipped"]


def test_all_contenders_agree_in_the_same_run(report):
    errors = [f["max_abs_error"] for f in report["figures"] if f["dropout"] == 0]
    assert all(error is not None and error < 1e-5 for error in errors)


def test_a_contender_that_computes_something_else_is_detected():
    contenders = list(attention_suite._contenders(24, 4, 0.0, torch.device("cpu"), torch.float32))
    with torch.no_grad():
        contenders[0].layer.out_proj.bias.add_(0.1)
    figures = list(attention_suite._measure(contenders, torch.randn(1, 9, 24), 0.0, "forward", 1, torch.device("cpu")))
    assert figures[0].max_abs_error > 0.05
    assert all(figure.max_abs_error < 1e-5 for figure in figures[1:])


@pytest.mark.skipif(not measurement._linux(), reason="peak memory is read from /proc")
def test_peak_memory_is_what_a_call_takes():
    megabytes = 64
    peak = measurement.peak_bytes(lambda: torch.ones(megabytes << 18), torch.device("cpu"))
    assert peak is not None
    assert 0.9 * megabytes < peak / 2**20 < 1.3 * megabytes


@pytest.mark.slow
@pytest.mark.skipif(not measurement._linux(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("backend", "dropout"), [("tiled", 0.0), ("tiled", 0.1), ("sdpa", 0.0)])
def test_memory_of_the_layer_grows_linearly(backend, dropout):
    from w2v_attn import MultiHeadSelfAttention

    layer = MultiHeadSelfAttention(96, 2, dropout=dropout, backend=backend)

    def step(frames):
        x = torch.randn(1, frames, 96, requires_grad=True)
        layer(x).sum().backward()

    step(200)
    short, long = (measurement.peak_bytes(lambda n=n: step(n), torch.device("cpu")) for n in (1000, 8000))
    assert short is not None
    assert long is not None
    assert long < 12 * max(short, 4 << 20)  # 8 × the frames; 64 × would be quadratic


def test_the_command_prints_tables_and_writes_json(tmp_path, capsys):
    output = tmp_path / "deep" / "figures.json"
    with pytest.raises(SystemExit) as done:
        app.main(
            ["benchmark", "frames=[16]", "channels=24", "heads=4", "rounds=1", "dropouts=[0.0]", f"output={output}"]
        )
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "forward+backward" in out
    assert "× best peer" in out
    figures = json.loads(output.read_text())
    assert {"date", "torch", "transformers", "device", "threads", "settings", "figures"} <= set(figures)


def test_an_unwritable_output_is_an_error_before_the_run_and_an_old_report_remains(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    old = tmp_path / "old.json"
    old.write_text('{"kept": true}')

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(attention_suite, "run", interrupted)
    for output in (tmp_path / "file" / "x.json", tmp_path):
        with pytest.raises(SystemExit) as done:
            app.main(["benchmark", f"output={output}"])
        assert done.value.code == 2
        assert "output=" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        app.main(["benchmark", f"output={old}"])
    assert done.value.code == 130
    assert json.loads(old.read_text()) == {"kept": True}


def test_an_unknown_suite_is_an_error(capsys):
    with pytest.raises(SystemExit) as done:
        app.main(["benchmark", "suite=everything"])
    assert done.value.code == 2
    assert "suite must be attention" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["feature_encoder", "none"])
def test_a_training_step_is_compared_on_the_same_loss(freeze, tmp_path, capsys):
    pytest.importorskip("accelerate")
    with pytest.raises(SystemExit) as done:
        app.main(
            ["benchmark", "suite=training", "channels=32", "heads=4", "layers=2", "rounds=1", "seconds=[0.5,1]",
             f"freeze={freeze}", f"output={tmp_path / 'r.json'}"]
        )  # fmt: skip
    assert done.value.code == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["settings"]["freeze"] == freeze
    figures = report["figures"]
    contenders = ["w2v_attn", "w2v_attn, attention alone", "Hugging Face sdpa", "Hugging Face eager"]
    for batch in ("ragged", "equal"):
        here = [figure for figure in figures if figure["batch"] == batch and figure["dropout"] == 0]
        assert [figure["contender"] for figure in here] == contenders
        losses = [figure["loss"] for figure in here]
        assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    assert all(figure["median_s"] > 0 for figure in figures)
    assert "× best peer" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- suite=encoder


def time_encoders(peers, size="tiny", **changes):
    settings = {
        "size": size,
        "sets": {"short": (0.5, 1.3, 0.7)},
        "peers": peers,
        "up_to": None,
        "rounds": 2,
        "device": torch.device("cpu"),
        "dtype": "float32",
        "log": lambda _: None,
    }
    return encoder_suite.run(**{**settings, **changes})


def by_name(report):
    return {figure["contender"]: figure for figure in report["figures"]}


@pytest.mark.parametrize(("size", "rest", "core"), [("base", 13.91, 0.0922), ("large", 36.00, 0.2458)])
def test_operations_equal_a_count_by_hand(size, rest, core):
    config = workload.model_config(size)
    seconds = 200
    heads_and_tails = operations(config, seconds) / seconds
    assert heads_and_tails == pytest.approx(rest + core * seconds, rel=2e-3)
    short = 12
    assert operations(config, short) / short == pytest.approx(rest + core * short, rel=5e-3)
    assert operations(config, seconds, blocks=0) < 0.45 * rest * seconds


def test_the_recordings_have_the_documented_lengths():
    assert len(workload.RAGGED) == 24
    assert (min(workload.RAGGED), max(workload.RAGGED)) == (1.3, 14.6)
    assert sum(workload.RAGGED) / 24 == pytest.approx(6.4, abs=0.05)
    wave = workload.random_waveforms([2.0])[0]
    assert wave.shape == (32_000,)
    assert (wave == 0).sum() == 0
    assert wave.mean().item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(wave, workload.random_waveforms([2.0])[0])


def test_encoders_are_timed_on_equal_features_and_padding_is_detected():
    report = time_encoders(["sorted_batches"], up_to="layer_02")
    figures = by_name(report)
    assert list(figures) == ["w2v_attn", "w2v_attn, layer_02", "Hugging Face", "Hugging Face, sorted × 8"]
    for name in ("w2v_attn", "w2v_attn, layer_02", "Hugging Face"):
        assert figures[name]["agrees"]
        assert figures[name]["max_abs_error"] < 1e-4
    padded = figures["Hugging Face, sorted × 8"]
    assert not padded["agrees"]
    assert padded["note"] == "differs, for it normalises over padding"
    # The others are compared with it all the same, where it is the fastest: many use it.
    peers = ("Hugging Face", "Hugging Face, sorted × 8")
    assert max(figures[name]["ratio"] for name in peers) == 1.0
    assert all(0 < f["floor_fraction"] < 1.5 and f["least_s"] <= f["median_s"] <= f["most_s"] for f in figures.values())
    titles = [title for title, _, _ in encoder_suite.tables(report)]
    assert len(titles) == 1
    assert "3 recordings" in titles[0]


def test_padding_does_not_differ_on_layer_norm_checkpoints():
    figures = by_name(time_encoders(["random_batches"], "tiny_large", rounds=1))
    assert all(figure["agrees"] for figure in figures.values())


def test_wavlm_is_timed_on_its_own_weights():
    figures = by_name(time_encoders(["torchaudio"], "tiny_wavlm", rounds=1))
    assert list(figures) == ["w2v_attn", "Hugging Face", "torchaudio"]
    assert all(figure["agrees"] for figure in figures.values())


def test_bfloat16_is_bounded_by_the_error_of_stock():
    figures = by_name(time_encoders(["one_by_one"], dtype="bfloat16", rounds=1))
    assert list(figures) == ["w2v_attn", "Hugging Face", "Hugging Face, float32"]
    stock = figures["Hugging Face"]["relative_error"]
    assert 0 < figures["w2v_attn"]["relative_error"] <= 1.1 * stock
    assert figures["Hugging Face, float32"]["relative_error"] == 0


def test_features_of_ours_that_differ_from_the_reference_are_an_error(monkeypatch):
    stock = pytorch_peers.Ours.run
    monkeypatch.setattr(pytorch_peers.Ours, "run", lambda self, waves: [rows * 1.001 for rows in stock(self, waves)])
    with pytest.raises(ValueError, match="cannot be compared"):
        time_encoders(["one_by_one"])


def test_an_unavailable_peer_is_reported_with_its_reason(monkeypatch):
    def missing(name):
        raise contender.Unavailable(f"{name} is not installed")

    monkeypatch.setattr("w2v_attn.benchmarks.peers.converted_peers.library", missing)
    report = time_encoders(["openvino", "ctranslate2"], rounds=1)
    reasons = {entry["contender"]: entry["reason"] for entry in report["left_out"]}
    assert reasons["OpenVINO"] == "openvino is not installed"
    assert "layer-norm checkpoints only" in reasons["CTranslate2"]
    assert "Hugging Face" in by_name(report)
    assert [title for title, _, _ in encoder_suite.tables(report)][-1] == "Left out"


def test_a_missing_library_makes_a_peer_unavailable():
    with pytest.raises(contender.Unavailable, match="no_such_library is not installed: pip install"):
        contender.library("no_such_library.models")


def test_a_peer_that_would_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(encoder_suite, "available_bytes", lambda _: 1000)
    report = time_encoders(["one_by_one"], rounds=1)
    assert "would need about" in report["left_out"][0]["reason"]
    assert by_name(report)["w2v_attn"]["note"] == "not compared: the reference does not fit"


@pytest.mark.parametrize(
    ("peer", "modules", "size"),
    [
        ("torchaudio", ["torchaudio"], "tiny"),
        ("onnxruntime", ["onnxruntime", "onnx", "onnxscript"], "tiny"),
        ("openvino", ["openvino"], "tiny"),
        ("openvino_streams", ["openvino"], "tiny"),
        ("ctranslate2", ["ctranslate2"], "tiny_large"),
    ],
)
def test_a_peer_that_is_installed_computes_the_same_features(peer, modules, size):
    for module in modules:
        pytest.importorskip(module)
    report = time_encoders([peer], size, rounds=1)
    assert not report["left_out"]
    assert len(report["figures"]) == 3
    assert all(figure["agrees"] for figure in report["figures"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("peers=[everyone]", "peers must be all"),
        ("sets=[week]", "sets must be some of"),
        ("size=huge", "size must be one of"),
        ("dtype=float16", "float32 or bfloat16"),
        ("rounds=0", "rounds must be"),
        ("up_to=layer_99", "layer_99"),
    ],
)
def test_a_wrong_request_is_an_error_before_anything_is_timed(call, wrong, message):
    code, _, err = call("benchmark", "suite=encoder", "size=tiny", wrong)
    assert code == 2
    assert message in err


def test_the_encoder_suite_writes_figures_and_a_picture(call, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(workload, "RAGGED", (0.5, 0.9))
    code, out, _ = call(
        "benchmark", "suite=encoder", "size=tiny", "rounds=1", "peers=one_by_one", f"output={tmp_path / 'e.json'}"
    )
    assert code == 0
    assert "of floor" in out
    assert json.loads((tmp_path / "e.json").read_text())["settings"]["sets"] == {"ragged": [0.5, 0.9]}
    assert (tmp_path / "e.png").stat().st_size > 5000


def test_names_of_peers_are_unique():
    names = [made.name for made in registry.select_peers(["all"], torch.device("cuda"))]
    assert len(set(names)) == len(registry.PEERS) == len(names)
    large = {registry.PEERS[name]().name for name in registry.FOR_ACCELERATORS}
    assert {made.name for made in registry.select_peers(["all"], torch.device("cpu"))} == set(names) - large


# ----------------------------------------------------------------------------------------------------- suite=cli


@pytest.fixture
def few_starts(monkeypatch):
    """Run each command in a subprocess the first time, to know that it starts, and then in this process."""
    started = set()

    def quick(timed):
        def run(line):
            _, option, module, *arguments = line
            if option != "-m" or arguments == ["--help"]:
                return timed(line)
            if module not in started:
                started.add(module)
                return timed(line)
            begun = time.perf_counter()
            if module == cli_suite.LOOP:
                transformers_loop.main(*arguments)
            else:
                with pytest.raises(SystemExit) as done:
                    app.main(arguments)
                assert done.value.code == 0
            return time.perf_counter() - begun

        return run

    monkeypatch.setattr(cli_suite, "seconds_of", quick(cli_suite.seconds_of))
    monkeypatch.setattr(cli_suite, "peak_bytes_of", quick(cli_suite.peak_bytes_of))
    return started


@pytest.mark.slow
def test_commands_are_timed_from_start_to_equal_files(few_starts):
    report = cli_suite.run(
        size="tiny",
        durations=(0.5, 1.1, 0.8),
        rounds=1,
        device=torch.device("cpu"),
        dtype="float32",
        log=lambda _: None,
    )
    figures = {(f["task"], f["command"]): f for f in report["figures"]}
    for task in ("3 recordings", "1 recording"):
        assert figures[task, "w2v-attn extract"]["agrees"]
        assert figures[task, "w2v-attn extract"]["max_abs_error"] < 1e-4
        assert figures[task, "transformers loop"]["max_abs_error"] == 0
    assert not figures["3 recordings", "transformers loop, sorted × 8"]["agrees"]
    help_s = figures["start", "w2v-attn --help"]["median_s"]
    assert 0 < help_s < figures["start", 'python -c "import torch, transformers"']["median_s"]
    assert len(list(cli_suite.tables(report))) == 3
    assert few_starts == {"w2v_attn", cli_suite.LOOP}


def test_time_and_memory_of_a_command_are_those_of_its_process():
    megabytes, slept = 200, 0.3
    line = [sys.executable, "-c", f"import time; held = b'1' * ({megabytes} << 20); time.sleep({slept})"]
    assert slept < seconds_of(line) < slept + 10
    peak = peak_bytes_of(line)
    assert peak is None or megabytes < peak / 2**20 < megabytes + 50


def test_the_error_of_a_failed_command_has_its_output():
    for timed in (seconds_of, peak_bytes_of):
        with pytest.raises(ValueError, match=r"ended with code 3: no such thing"):
            timed([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])


# -------------------------------------------------------------------------------------------------- suite=memory


@pytest.mark.parametrize("size", ["tiny", "tiny_large", "tiny_wavlm", "tiny_omniasr"])
def test_a_checkpoint_that_is_written_in_shards_is_whole(size, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_suite, "SHARD_BYTES", 50_000)
    parameters = memory_suite.save_random_checkpoint(size, tmp_path, torch.bfloat16)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = load_checkpoint(tmp_path, dtype="bfloat16")
    assert checkpoint.missing == checkpoint.unexpected == ()
    assert sum(parameter.numel() for parameter in checkpoint.model.parameters()) == parameters
    features = load_encoder(tmp_path).extract(torch.randn(8000))["final"]
    assert bool(features.isfinite().all())


@pytest.mark.slow
def test_memory_is_measured_for_each_dtype_on_the_disk(call):
    code, _, err = call("benchmark", "suite=memory", "size=tiny_omniasr", "dtype=bfloat16", "output=memory.json")
    assert code == 0, err
    figures = json.loads(Path("memory.json").read_text())["figures"]
    assert [(f["command"].split()[0], f["stored"]) for f in figures] == [
        (command, stored) for stored in ("bfloat16", "float32") for command in ("w2v-attn", "transformers")
    ]
    assert all(f["peak_mib"] is None or f["ratio"] == pytest.approx(f["peak_mib"] / f["weights_mib"]) for f in figures)


def test_wider_windows_and_chunks_are_closer_to_full_attention(call):
    code, out, _ = call("benchmark", "suite=long_form", "long_seconds=8", "widths=[12,1,4]", "output=long_form.json")
    assert code == 0
    assert "relative L2" in out
    figures = {(f["kind"], f["seconds"]): f for f in json.loads(Path("long_form.json").read_text())["figures"]}
    assert figures["full", None]["same_symbols"] == 1
    for kind in ("sliding_window", "chunked"):
        far, near, whole = (figures[kind, width]["relative_l2"] for width in (1.0, 4.0, 12.0))
        assert whole < 1e-5 < near < far


def test_too_little_audio_for_a_long_recording_is_an_error(call):
    code, _, err = call("benchmark", "suite=long_form", "long_seconds=100000")
    assert code == 2
    assert "are needed" in err
