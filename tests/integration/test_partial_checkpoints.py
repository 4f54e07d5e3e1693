"""Folders and files that are not a whole checkpoint are refused by what they are; quantised and offloaded models."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, save, tiny_model
from safetensors.torch import load_file, save_file

from w2v_attn import load_encoder, replace_attention, restore_attention
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.transcription.load_recognizer import load_recognizer

WEIGHTS = "model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 377607901\n"


@pytest.fixture
def folder(tmp_path):
    return save(tiny_model("wav2vec2-group", "ForCTC"), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return save(tiny_model("wav2vec2-group"), tmp_path / "sharded", max_shard_size="20KB")


def instead(name, content=b"x"):
    """The folder with this file, or folder, in place of its weights."""

    def change(folder):
        (folder / WEIGHTS).unlink()
        path = folder / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)

    return change


def pointer(folder):
    (folder / WEIGHTS).write_text(LFS)


def empty(folder):
    (folder / WEIGHTS).write_bytes(b"")


def quantised(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": values}))

    return change


# name -> (what is changed in a healthy folder, what is said)
FOLDERS = {
    "TensorFlow": (instead("tf_model.h5"), r"no weights.* weights of TensorFlow \(tf_model.h5\)"),
    "Flax": (instead("flax_model.msgpack"), r"weights of Flax \(flax_model.msgpack\)"),
    "DeepSpeed": (instead("global_step500", None), r"DeepSpeed's ZeRO \(global_step500\).*zero_to_fp32.py"),
    "FSDP": (instead("pytorch_model_fsdp_0", None), "torch's FSDP .* accelerate merge-weights"),
    "GGUF": (instead("model-q4.gguf"), r"llama.cpp or whisper.cpp \(model-q4.gguf\)"),
    "ONNX": (instead("model.onnx"), "an ONNX graph"),
    "a download": (instead(f"{WEIGHTS}.incomplete"), "a download that has not ended"),
    "NeMo": (instead("a.nemo"), "NeMo archive"),
    "Lightning": (instead("last.ckpt"), "another training library"),
    "a pointer": (pointer, "the pointer of git-lfs, not the weights: run `git lfs install` and `git lfs pull`"),
    "nothing in it": (empty, "is empty: download the file again"),
    "4 bit": (
        quantised(quant_method="bitsandbytes", load_in_4bit=True, load_in_8bit=False),
        r"quantised \(bitsandbytes, 4 bit\).*use the checkpoint that they were made from",
    ),
    "GPTQ": (quantised(quant_method="gptq", bits=3), r"quantised \(gptq, 3 bit\)"),
    "torchao": (quantised(quant_method="torchao", quant_type={"default": {}}), r"quantised \(torchao\)"),
    "unknown": (quantised(a=1), r"quantised \(an unknown method\)"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_without_usable_weights_is_refused_by_what_it_has(case, folder):
    change, says = FOLDERS[case]
    load_checkpoint(folder)
    change(folder)
    for load in (load_checkpoint, load_encoder, load_recognizer):
        with pytest.raises(CheckpointError, match=says):
            load(folder)


@pytest.mark.parametrize("command", ["load", "extract", "transcribe", "evaluate", "finetune", "verify"])
def test_every_command_says_it_and_writes_nothing(command, call, folder, tmp_path):
    pointer(folder)
    audio = "data.train" if command == "finetune" else "audio"
    options = [] if command == "load" else [f"{audio}={TINY.parent / 'speech'}"]
    code, _, err = call(command, f"model.checkpoint={folder}", *options)
    assert code == 2
    assert "git lfs pull" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_missing_shard_is_named(sharded):
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    load_checkpoint(sharded)
    shards[1].unlink()
    shards[2].write_text(LFS)
    with pytest.raises(CheckpointError, match=rf"lacks 1 of {len(shards)} files of its weights.*: {shards[1].name}"):
        load_checkpoint(sharded)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key: place for key, place in index["weight_map"].items() if place != shards[1].name}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{shards[2].name} is the pointer of git-lfs"):
        load_checkpoint(sharded)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', "[]"])
def test_a_damaged_index_is_named(text, sharded):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json cannot be read as an index"):
        load_checkpoint(sharded)


def test_a_folder_above_says_which_checkpoints_there_are(folder, tmp_path):
    run = tmp_path / "run"
    for step in (500, 1000, 90):
        shutil.copytree(folder, run / f"checkpoint-{step}")
    (run / "runs").mkdir()
    (run / "trainer_state.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-90, checkpoint-500, checkpoint-1000: name one of them"
    ) as told:
        load_checkpoint(run)
    assert f"such as {run / 'checkpoint-1000'}" in str(told.value)


def test_a_cache_folder_of_the_hub_says_which_folder_inside_is_the_checkpoint(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    (tmp_path / "models--a--b" / "refs").mkdir()
    with pytest.raises(CheckpointError, match=r"cache folder of the hub: name .*models--a--b/snapshots/c0ffee"):
        load_checkpoint(tmp_path / "models--a--b")


@pytest.mark.parametrize("form", ["bin", "a folder of Trainer", "DeepSpeed beside the weights"])
def test_whole_checkpoints_load_whatever_is_beside_them(form, folder):
    expected = load_checkpoint(folder).model.state_dict()
    if form == "bin":
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
    else:
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "a.safetensors.incomplete"):
            (folder / name).write_bytes(b"not read")
        (folder / "trainer_state.json").write_text("{}")
        (folder / "global_step500").mkdir()
    found = load_checkpoint(folder).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


FILES = {
    "model.gguf": (b"GGUF\x03\x00\x00\x00", "is in GGUF format"),
    "renamed.pt": (b"GGUF\x03\x00\x00\x00", "is in GGUF format"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n", "HDF5 file, as TensorFlow's tf_model.h5"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch", "holds an ONNX graph"),
    "flax_model.msgpack": (b"\x81\xa6params", "holds weights of Flax"),
    "model.safetensors": (LFS.encode(), "git lfs pull"),
    "model.pt": (b"", "is empty"),
    "a.nemo": (b"\x1f\x8b", "NeMo archive"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_refused_by_name(name, tmp_path):
    content, says = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(tmp_path / name)


def test_one_file_of_an_adapter_or_of_a_trainer_says_to_name_the_folder(tmp_path):
    save_file({"base_model.model.a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "training_args.bin").write_bytes(b"PK\x03\x04")
    for name in ("adapter_model.safetensors", "training_args.bin"):
        with pytest.raises(CheckpointError, match=f"name its folder, {tmp_path}"):
            load_checkpoint(tmp_path / name)


def test_weights_of_an_adapter_without_its_config_are_told(tmp_path):
    save_file({"base_model.model.a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"weights of a PEFT adapter, but not their adapter_config\.json"):
        load_checkpoint(tmp_path)


# --------------------------------------------------------------------------------- models quantised in Python


def quantised_model(family):
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(tiny_model(family), {torch.nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["wav2vec2-layer", "hubert-group", "conformer-relative"])
def test_a_dynamically_quantised_model_computes_what_stock_does_with_it(family):
    wave = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal((1, 6000)).astype(np.float32))
    model = quantised_model(family)
    with torch.no_grad():
        stock = model(wave).last_hidden_state
        ours = replace_attention(model)(wave).last_hidden_state
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(restore_attention(model)(wave).last_hidden_state, stock, rtol=0, atol=0)
        encoder = load_encoder(TINY)
        encoder.model = replace_attention(model)
        found = encoder.extract(wave)["final"]
        torch.testing.assert_close(found, model(encoder.prepare(wave[0])[None]).last_hidden_state[0])
    assert encoder.unpacked_reason is not None


def test_a_model_whose_blocks_accelerate_offloads_is_refused_with_the_way_out(folder, tmp_path):
    from transformers import Wav2Vec2Model

    options = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offloaded"}
    model = Wav2Vec2Model.from_pretrained(folder, **options)
    with pytest.raises(ValueError, match=r"accelerate moves the weights .*load the model without device_map"):
        replace_attention(model)
