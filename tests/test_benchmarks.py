"""The benchmark measures what it says, checks that results agree, and writes what it found."""

import json

import pytest
import torch

from w2v_attn import app
from w2v_attn.benchmarks import attention, measuring


@pytest.fixture(scope="module")
def report():
    return attention.run(
        frames=[23, 40],
        channels=24,
        heads=4,
        batch=2,
        dropouts=[0.0, 0.1],
        rounds=2,
        device=torch.device("cpu"),
        dtype="float32",
        tell=lambda _: None,
    )


def test_ours_and_every_peer_are_measured_at_every_length(report):
    seen = {(f["contender"], f["frames"], f["dropout"], f["what"]) for f in report["figures"]}
    for frames in (23, 40):
        for name in ("w2v_attn explicit", "Hugging Face eager", "Hugging Face sdpa", "torch.nn.MultiheadAttention"):
            assert (name, frames, 0.0, "forward") in seen
            assert (name, frames, 0.0, "forward+backward") in seen
            assert (name, frames, 0.1, "forward+backward") in seen
        assert ("w2v_attn fused", frames, 0.0, "forward") in seen
    assert not report["skipped"]


def test_all_contenders_agree_in_the_same_run(report):
    errors = [f["max_abs_error"] for f in report["figures"] if f["dropout"] == 0]
    assert all(error is not None and error < 1e-5 for error in errors)


def test_a_contender_that_computes_something_else_would_show():
    contenders = list(attention._contenders(24, 4, 0.0, torch.device("cpu"), torch.float32))
    with torch.no_grad():
        contenders[0].layer.out_proj.bias.add_(0.1)
    figures = list(attention._measure(contenders, torch.randn(1, 9, 24), 0.0, "forward", 1, torch.device("cpu")))
    assert figures[0].max_abs_error > 0.05
    assert all(figure.max_abs_error < 1e-5 for figure in figures[1:])


@pytest.mark.skipif(not measuring._linux(), reason="peak memory is read from /proc")
def test_peak_memory_is_what_a_call_takes():
    megabytes = 64
    peak = measuring.peak_bytes(lambda: torch.ones(megabytes << 18), torch.device("cpu"))
    assert peak is not None
    assert 0.9 * megabytes < peak / 2**20 < 1.3 * megabytes


@pytest.mark.slow
@pytest.mark.skipif(not measuring._linux(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("backend", "dropout"), [("explicit", 0.0), ("explicit", 0.1), ("fused", 0.0)])
def test_memory_of_the_layer_grows_linearly(backend, dropout):
    from w2v_attn import MultiHeadSelfAttention

    layer = MultiHeadSelfAttention(96, 2, dropout=dropout, backend=backend)

    def step(frames):
        x = torch.randn(1, frames, 96, requires_grad=True)
        layer(x).sum().backward()

    step(200)
    short, long = (measuring.peak_bytes(lambda n=n: step(n), torch.device("cpu")) for n in (1000, 8000))
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


def test_an_output_that_cannot_be_written_is_told_first_and_an_old_report_stays(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    old = tmp_path / "old.json"
    old.write_text('{"kept": true}')

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(attention, "run", interrupted)
    for output in (tmp_path / "file" / "x.json", tmp_path):
        with pytest.raises(SystemExit) as done:
            app.main(["benchmark", f"output={output}"])
        assert done.value.code == 2
        assert "output=" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        app.main(["benchmark", f"output={old}"])
    assert json.loads(old.read_text()) == {"kept": True}


def test_an_unknown_benchmark_is_told(capsys):
    with pytest.raises(SystemExit) as done:
        app.main(["benchmark", "what=everything"])
    assert done.value.code == 2
    assert "what must be attention" in capsys.readouterr().err


def test_a_training_step_is_compared_on_the_same_loss(tmp_path, capsys):
    pytest.importorskip("accelerate")
    with pytest.raises(SystemExit) as done:
        app.main(
            ["benchmark", "what=training", "channels=32", "heads=4", "layers=2", "rounds=1", "seconds=[0.5,1]",
             f"output={tmp_path / 'r.json'}"]
        )  # fmt: skip
    assert done.value.code == 0
    report = json.loads((tmp_path / "r.json").read_text())
    figures = report["figures"]
    assert [figure["contender"] for figure in figures[:3]] == ["w2v_attn", "Hugging Face sdpa", "Hugging Face eager"]
    losses = [figure["loss"] for figure in figures if figure["dropout"] == 0]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert all(figure["median_s"] > 0 for figure in figures)
    assert "× best peer" in capsys.readouterr().out
