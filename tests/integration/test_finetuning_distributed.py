"""Several processes train as one: `torchrun` with gloo, on the CPU."""

import json
import os
import subprocess
import sys

import pytest
from conftest import SPEECH
from safetensors.torch import load_file

CLIPS = SPEECH / "clips.csv"
pytestmark = pytest.mark.slow


def command(output, *more):
    return [
        "finetune", "data=local", f"data.train={CLIPS}", f"output={output}", "device=cpu", "training.max_steps=6",
        "training.eval_steps=3", "training.batch_seconds=5", "optimizer.lr=1e-4", *more,
    ]  # fmt: skip


def by_two(arguments):
    """What two processes that do this in parallel say."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "w2v_attn"]
    done = subprocess.run(
        [*start, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(output):
    entries = [json.loads(line) for line in (output / "curves.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_two_processes_are_one_with_twice_the_batch(call, tmp_path):
    names = "hidden_dropout attention_dropout feat_proj_dropout layerdrop mask_time_prob mask_feature_prob".split()
    off = [f"regularization.{name}=0" for name in names]
    said = by_two(command(tmp_path / "two", *off))
    assert call(*command(tmp_path / "one", *off, "training.gradient_accumulation_steps=2"))[0] == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, parameter in theirs.items():
        if name.endswith("k_proj.bias"):
            continue  # softmax does not feel it: its gradient is rounding, which Adam makes as large as any other
        assert (ours[name] - parameter).abs().max() < 2e-5, name
    # Evaluated without duplicates, said once.
    found = [
        sorted(
            json.loads(line)["id"] for line in (tmp_path / name / "valid/predictions.jsonl").read_text().splitlines()
        )
        for name in ("two", "one")
    ]
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])
    assert said.count("Before training") == said.count("Fine-tuned") == 1


def test_layerdrop_and_frozen_updates_leave_no_parameter_unused(tmp_path):
    by_two(command(tmp_path / "out", "regularization.layerdrop=0.5", "training.freeze_encoder_steps=2"))
    assert (tmp_path / "out" / "results.json").is_file()
