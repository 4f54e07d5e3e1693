"""Loading: every format of a checkpoint gives the same features, and every broken one a reason."""

import contextlib
import json
import os
import pickle
import shutil

import pytest
import torch
from conftest import FAMILIES, TINY, save, tiny_model
from safetensors.torch import load_file, save_file

from w2v_attn import load_encoder
from w2v_attn.checkpoints import hub
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.export import export_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint

OLD_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def features(folder):
    torch.manual_seed(0)
    return load_encoder(folder).extract([torch.randn(2000)])[0]["final"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def as_bin(folder, tensors):
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def with_old_names(tensors):
    for new, old in OLD_NAMES.items():
        tensors = {key.replace(new, old): value for key, value in tensors.items()}
    return tensors


def with_new_names(tensors):
    for new, old in OLD_NAMES.items():
        tensors = {key.replace(old, new): value for key, value in tensors.items()}
    return tensors


FORMATS = {
    "bin": lambda folder: as_bin(folder, weights(folder)),
    "old names in bin": lambda folder: as_bin(folder, with_old_names(weights(folder))),
    "old names": lambda folder: save_file(
        with_old_names(weights(folder)), folder / "model.safetensors", {"format": "pt"}
    ),
    "new names": lambda folder: save_file(
        with_new_names(weights(folder)), folder / "model.safetensors", {"format": "pt"}
    ),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("norm", ["group_checkpoint", "layer_checkpoint"])
def test_every_format_gives_the_same_features(norm, format, request):
    folder = request.getfixturevalue(norm)
    before = features(folder)
    FORMATS[format](folder)
    assert torch.equal(features(folder), before)


def test_shards_give_the_same_features(tmp_path):
    model = tiny_model("wav2vec2-layer", "ForCTC")
    whole, sharded = save(model, tmp_path / "whole"), save(model, tmp_path / "sharded", max_shard_size="30KB")
    assert (sharded / "model.safetensors.index.json").exists()
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert torch.equal(features(sharded), features(whole))


@pytest.mark.parametrize("head", ["Model", "ForCTC", "ForSequenceClassification", "ForPreTraining", "ForXVector"])
def test_a_head_makes_no_difference_to_the_encoder(head, tmp_path):
    model = tiny_model("wav2vec2-group", head)
    folder = save(model, tmp_path / head)
    checkpoint = load_checkpoint(folder)
    assert type(checkpoint.model).__name__ == "Wav2Vec2Model"
    assert checkpoint.missing == ()
    assert bool(checkpoint.unexpected) == (head != "Model")
    base = getattr(model, "wav2vec2", model)
    for name, tensor in base.state_dict().items():
        assert torch.equal(checkpoint.model.state_dict()[name], tensor), name


def test_every_family_loads_with_and_without_its_head(family, tmp_path):
    folder = save(tiny_model(family, "ForCTC"), tmp_path / family)
    assert type(load_checkpoint(folder).model).__name__ == f"{FAMILIES[family][0]}Model"
    whole = load_checkpoint(folder, with_head=True)
    assert type(whole.model).__name__ == f"{FAMILIES[family][0]}ForCTC"
    assert whole.unexpected == ()


def test_a_copy_loads_in_stock_transformers_and_keeps_the_head(group_checkpoint, tmp_path):
    import transformers

    (group_checkpoint / "vocab.json").write_text("{}")
    checkpoint = load_checkpoint(group_checkpoint, with_head=True)
    export_checkpoint(checkpoint, tmp_path / "deep" / "copy")
    copied = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "deep" / "copy")
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(copied.state_dict()[name], tensor), name
    assert (tmp_path / "deep" / "copy" / "vocab.json").read_text() == "{}"
    assert torch.equal(features(tmp_path / "deep" / "copy"), features(group_checkpoint))
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export_checkpoint(checkpoint, tmp_path / "deep" / "copy")


def test_a_missing_mask_embedding_is_harmless_and_listed(group_checkpoint):
    tensors = weights(group_checkpoint)
    del tensors["wav2vec2.masked_spec_embed"]
    save_file(tensors, group_checkpoint / "model.safetensors", {"format": "pt"})
    assert load_checkpoint(group_checkpoint).missing == ("masked_spec_embed",)


# ----------------------------------------------------------------------------------------------- refusals


class RunsCode:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(group_checkpoint, tmp_path, zipped):
    bomb = RunsCode()
    bomb.path = str(tmp_path / "it-ran")
    tensors = {**weights(group_checkpoint), "bomb": bomb}
    (group_checkpoint / "model.safetensors").unlink()
    file = group_checkpoint / "pytorch_model.bin"
    if zipped:
        torch.save(tensors, file)
    else:
        file.write_bytes(pickle.dumps(bomb))
    with pytest.raises(CheckpointError, match="refused"):
        load_encoder(group_checkpoint)
    assert not (tmp_path / "it-ran").exists()


def test_missing_misshaped_and_unexpected_keys_are_all_listed(group_checkpoint):
    tensors = weights(group_checkpoint)
    del tensors["wav2vec2.encoder.layers.1.attention.k_proj.weight"]
    tensors["wav2vec2.encoder.layers.2.feed_forward.output_dense.bias"] = torch.zeros(5)
    tensors["wav2vec2.encoder.layers.9.attention.k_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, group_checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_encoder(group_checkpoint)
    text = str(caught.value)
    assert "missing: encoder.layers.1.attention.k_proj.weight" in text
    assert "of shape [5] instead of [24]: encoder.layers.2.feed_forward.output_dense.bias" in text
    assert "layers.9.attention.k_proj.weight" in text


@pytest.mark.parametrize("length", [0, 5, 1000, -10])
def test_truncated_safetensors_are_reported(group_checkpoint, length):
    file = group_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"safetensors|weights"):
        load_encoder(group_checkpoint)


def test_a_truncated_bin_is_reported(group_checkpoint):
    as_bin(group_checkpoint, weights(group_checkpoint))
    file = group_checkpoint / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError):
        load_encoder(group_checkpoint)


def test_a_missing_shard_is_reported(tmp_path):
    folder = save(tiny_model("wav2vec2-layer"), tmp_path / "sharded", max_shard_size="30KB")
    next(folder.glob("model-00002*.safetensors")).unlink()
    with pytest.raises(CheckpointError):
        load_encoder(folder)


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("family", ["bert", "sew-d", "whisper", None])
def test_another_family_is_named_with_those_that_are_supported(group_checkpoint, family):
    change_config(group_checkpoint, model_type=family)
    with pytest.raises(CheckpointError, match=r"Supported are: wav2vec2, hubert") as caught:
        load_encoder(group_checkpoint)
    assert family is None or family in str(caught.value)


BAD_CONFIGS = [
    {"model_type": ["wav2vec2"]},
    {"num_attention_heads": 0},
    {"num_attention_heads": 7},
    {"conv_dim": 5},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
]


@pytest.mark.parametrize("changes", BAD_CONFIGS, ids=str)
@pytest.mark.parametrize("with_head", [False, True])
def test_invalid_values_in_a_config_are_reported(group_checkpoint, changes, with_head):
    change_config(group_checkpoint, **changes)
    with pytest.raises(CheckpointError):
        load_checkpoint(group_checkpoint, with_head=with_head)


def test_architectures_that_name_no_model_of_the_family_leave_the_encoder(group_checkpoint):
    change_config(group_checkpoint, architectures=["BertModel", "os"])
    assert type(load_checkpoint(group_checkpoint, with_head=True).model).__name__ == "Wav2Vec2Model"
    change_config(group_checkpoint, architectures=5)
    with contextlib.suppress(CheckpointError):  # some versions of transformers refuse it, others read past it
        load_checkpoint(group_checkpoint, with_head=True)


@pytest.mark.parametrize("changes", [{"sampling_rate": 0}, {"sampling_rate": "x"}, {"do_normalize": "false"}], ids=str)
def test_invalid_values_in_a_preprocessor_config_are_reported(group_checkpoint, changes):
    file = group_checkpoint / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match="preprocessor"):
        load_checkpoint(group_checkpoint)


@pytest.mark.parametrize("head", ["ForCTC", "ForSequenceClassification", "ForPreTraining"])
@pytest.mark.parametrize("family", ["unispeech-group", "unispeech-layer", "unispeech-sat-group", "unispeech-sat-layer"])
def test_the_heads_of_other_families_make_no_difference_either(family, head, tmp_path):
    load_checkpoint(save(tiny_model(family, head), tmp_path / head))


def test_an_export_that_cannot_be_written_is_reported_and_leaves_nothing(group_checkpoint, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    checkpoint = load_checkpoint(group_checkpoint)

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint.model, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="No space left"):
        export_checkpoint(checkpoint, tmp_path / "there" / "copy")
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"model_type": "wav2vec2", "hidden_size": "many"}'])
def test_a_config_that_is_not_valid_is_reported(group_checkpoint, text):
    (group_checkpoint / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        load_encoder(group_checkpoint)


def test_a_preprocessor_config_that_is_not_valid_is_reported(group_checkpoint):
    (group_checkpoint / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="preprocessor"):
        load_encoder(group_checkpoint)


def test_nothing_that_a_config_names_is_instantiated(group_checkpoint, tmp_path):
    ran = tmp_path / "it-ran"
    change_config(
        group_checkpoint,
        _target_="os.mkdir",
        path=str(ran),
        auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        custom={"_target_": "os.mkdir", "path": str(ran)},
    )
    (group_checkpoint / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    load_encoder(group_checkpoint)
    assert not ran.exists()


def test_folders_that_contain_no_checkpoint_are_reported(tmp_path, group_checkpoint):
    for wrong in (tmp_path / "absent", "./absent", "a/b/c", "", group_checkpoint / "config.json"):
        with pytest.raises(CheckpointError):
            load_encoder(wrong)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"without config.json \(it contains: notes.txt\)"):
        load_encoder(empty)
    shutil.copy(group_checkpoint / "config.json", empty)
    with pytest.raises(CheckpointError, match="no weights"):
        load_encoder(empty)


def test_without_network_a_hub_id_says_how_to_name_a_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    with pytest.raises(CheckpointError, match=r"model=local model.checkpoint=") as caught:
        load_encoder("nobody/nothing")
    assert "no connection" in str(caught.value)


def test_an_unknown_dtype_is_reported(group_checkpoint):
    with pytest.raises(CheckpointError, match="bfloat16"):
        load_encoder(group_checkpoint, dtype="fp16")


def test_only_one_form_of_the_weights_is_fetched():
    both = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    assert hub._wanted(both) == ["*.json", "*.txt", "model.safetensors"]
    assert hub._wanted(both[2:]) == ["*.json", "*.txt", "pytorch_model.bin"]
    assert hub._wanted(["model.safetensors.index.json"]) == ["*.json", "*.txt", "*-of-*.safetensors"]


def test_load_shows_layers_the_frame_rate_and_the_parameters_of_each_part(call):
    from transformers import Wav2Vec2ForCTC

    code, out, _ = call("load")
    assert code == 0
    rows = dict(line.strip("│ \n").split("│", 1) for line in out.splitlines() if line.count("│") == 3)
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert rows["layers"] == "embed, layer_01, layer_02, layer_03, layer_04, final"
    assert rows["frame rate"] == "50 frames/s; a frame needs 400 samples"
    stock = Wav2Vec2ForCTC.from_pretrained(TINY)
    parts = {
        "feature encoder": stock.wav2vec2.feature_extractor,
        "feature projection": stock.wav2vec2.feature_projection,
        "positions": stock.wav2vec2.encoder.pos_conv_embed,
        "blocks": stock.wav2vec2.encoder.layers,
        "head": stock.lm_head,
    }
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    # "blocks" is also the name of the row with their sizes, which comes later.
    shown = {name: int(rows[name].replace(",", "")) for name in counts if name != "blocks"}
    assert shown == {name: count for name, count in counts.items() if name != "blocks"}
    assert f"{counts['blocks']:,}" in out
    total = int(rows["parameters"].replace(",", ""))
    assert total == sum(parameter.numel() for parameter in stock.parameters())
    assert total == sum(counts.values()) + int(rows["other parts"])


@pytest.mark.parametrize("family", ["sew", "conformer-relative", "data2vec-audio", "wavlm-layer", "omniasr"])
@pytest.mark.parametrize("head", ["Model", "ForCTC"])
def test_the_parameters_of_the_parts_add_up(family, head):
    from w2v_attn.checkpoints.description import count_parameters

    model = tiny_model(family, head)
    counts = count_parameters(model)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert ("head" in counts) == (head == "ForCTC")
