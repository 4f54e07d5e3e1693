"""PEFT adapters are merged into their base model as peft merges them, with every weight accounted for."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, save, tiny_bert, tiny_model
from safetensors.torch import load_file, save_file

from w2v_attn import load_encoder
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.checksum import checkpoint_hash
from w2v_attn.checkpoints.loading import load_checkpoint

peft = pytest.importorskip("peft")

ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
KINDS = {
    "lora": lambda: peft.LoraConfig(r=3, target_modules=ATTENTION),
    "all-linear": lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
    "by a pattern": lambda: peft.LoraConfig(r=2, target_modules=r".*layers\.[01]\.attention\.(q|v)_proj"),
    "biases": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all"),
    "rank-stabilised": lambda: peft.LoraConfig(r=3, target_modules=["q_proj"], use_rslora=True, lora_alpha=5),
    "ranks of its own": lambda: peft.LoraConfig(r=3, target_modules=ATTENTION, rank_pattern={"k_proj": 5}),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=ATTENTION, use_dora=True),
    "pissa": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
    "convolutions": lambda: peft.LoraConfig(r=2, target_modules=["conv_layers.1.conv", "q_proj"]),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "output_dense"], feedforward_modules=["output_dense"]
    ),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=["q_proj"], init_r=3, total_step=10),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "hra": lambda: peft.HRAConfig(r=2, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "fourier": lambda: peft.FourierFTConfig(n_frequency=7, target_modules=["q_proj"]),
    "layer norms": lambda: peft.LNTuningConfig(target_modules=["final_layer_norm"]),
}


def adapter_of(model, config, folder, **options):
    """The folder of an adapter with random weights, and stock's model with that adapter merged by peft."""
    tuned = peft.get_peft_model(model, config, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    tuned.save_pretrained(folder, save_embedding_layers=False)  # peft #1569: it looks for embeddings
    return folder


def merged(model, folder):
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


def same_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def base(tmp_path):
    return save(tiny_model("wav2vec2-layer"), tmp_path / "base")


@pytest.fixture
def ctc(tmp_path):
    return save(tiny_model("wav2vec2-group", "ForCTC"), tmp_path / "ctc")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_is_merged_as_peft_merges_it(kind, base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS[kind](), tmp_path / "adapter")
    stock = Wav2Vec2Model.from_pretrained(base)
    found = load_checkpoint(folder, base_model=base)
    theirs = merged(Wav2Vec2Model.from_pretrained(base), folder)
    assert same_weights(found.model, theirs)
    assert not same_weights(theirs, stock)
    assert all(parameter.requires_grad for parameter in found.model.parameters())


def test_features_are_those_of_the_merged_model_and_its_checksum_covers_the_adapter(base, tmp_path, speech):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    whole = save(merged(Wav2Vec2Model.from_pretrained(base), folder), tmp_path / "whole")
    adapted = load_encoder(folder, base_model=base)
    [ours], [theirs] = adapted.extract(speech[:1]), load_encoder(whole).extract(speech[:1])
    assert torch.equal(ours["final"], theirs["final"])
    hashes = [checkpoint_hash(load_checkpoint(place)) for place in (whole, base)]
    assert checkpoint_hash(adapted.checkpoint) == hashes[0] != hashes[1]


def test_half_precision_is_that_of_the_merged_weights(base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    whole = save(merged(Wav2Vec2Model.from_pretrained(base), folder), tmp_path / "whole")
    ours, theirs = (
        load_checkpoint(*a, dtype="bfloat16", **k).model for a, k in (((folder,), {"base_model": base}), ((whole,), {}))
    )
    assert same_weights(ours, theirs)


@pytest.mark.parametrize("family", ["hubert-group", "wavlm-layer", "sew", "conformer-relative", "data2vec-audio"])
def test_adapters_of_every_family(family, tmp_path):
    model = tiny_model(family)
    base = save(model, tmp_path / "base")
    targets = ["linear_q", "linear_v"] if family.startswith("conformer") else ["q_proj", "v_proj"]
    folder = adapter_of(model, peft.LoraConfig(r=2, target_modules=targets), tmp_path / "adapter")
    assert same_weights(
        load_checkpoint(folder, base_model=base).model, merged(type(model).from_pretrained(base), folder)
    )


def test_an_adapter_of_wav2vec2_bert_keeps_its_filter_banks(tmp_path):
    from transformers import SeamlessM4TFeatureExtractor

    model = tiny_bert()
    model.save_pretrained(tmp_path / "base")
    SeamlessM4TFeatureExtractor().save_pretrained(tmp_path / "base")
    folder = adapter_of(model, peft.LoraConfig(r=2, target_modules=["linear_q"]), tmp_path / "adapter")
    found = load_checkpoint(folder, base_model=tmp_path / "base")
    assert found.filter_banks is not None
    assert same_weights(found.model, merged(type(model).from_pretrained(tmp_path / "base"), folder))


# ------------------------------------------------------------------------------------------------- heads


def test_a_ctc_head_that_was_saved_with_the_adapter_replaces_that_of_the_base(ctc, tmp_path):
    from transformers import Wav2Vec2ForCTC

    options = peft.LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"])
    folder = adapter_of(Wav2Vec2ForCTC.from_pretrained(ctc), options, tmp_path / "adapter")
    theirs = merged(Wav2Vec2ForCTC.from_pretrained(ctc), folder)
    assert same_weights(load_checkpoint(folder, base_model=ctc, with_head=True).model, theirs)
    assert same_weights(load_checkpoint(folder, base_model=ctc).model, theirs.wav2vec2)


def test_a_new_head_on_a_pretrained_base_has_the_sizes_of_the_adapter(tmp_path):
    from transformers import Wav2Vec2ForCTC

    base = save(tiny_model("wav2vec2-group", "ForPreTraining"), tmp_path / "base")
    model = Wav2Vec2ForCTC.from_pretrained(base, vocab_size=17)
    options = peft.LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"])
    folder = adapter_of(model, options, tmp_path / "adapter")
    theirs = merged(Wav2Vec2ForCTC.from_pretrained(base, vocab_size=17), folder)
    found = load_checkpoint(folder, base_model=base, with_head=True)
    assert same_weights(found.model, theirs)
    assert found.model.config.vocab_size == 17


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_a_classifier_keeps_its_projector_and_the_labels_beside_the_adapter(task_type, base, tmp_path):
    from transformers import Wav2Vec2ForSequenceClassification

    labels = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    options = peft.LoraConfig(
        r=2, target_modules=ATTENTION, modules_to_save=["projector", "classifier"], task_type=task_type
    )
    model = Wav2Vec2ForSequenceClassification.from_pretrained(base, classifier_proj_size=7, **labels)
    config = model.config
    folder = adapter_of(model, options, tmp_path / "adapter")
    stock = Wav2Vec2ForSequenceClassification.from_pretrained(base, classifier_proj_size=7, **labels)
    theirs = merged(stock, folder)
    found = load_checkpoint(folder, base_model=base, with_head=True)
    assert same_weights(found.model, theirs)
    config.save_pretrained(folder)
    assert load_checkpoint(folder, base_model=base, with_head=True).model.config.id2label == labels["id2label"]


def test_an_adapter_of_an_encoder_fits_into_a_base_with_a_head(ctc, tmp_path):
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(ctc), KINDS["lora"](), tmp_path / "adapter")
    whole = load_checkpoint(folder, base_model=ctc, with_head=True).model
    assert isinstance(whole, Wav2Vec2ForCTC)
    assert same_weights(whole.wav2vec2, merged(Wav2Vec2Model.from_pretrained(ctc), folder))
    assert torch.equal(whole.lm_head.weight, Wav2Vec2ForCTC.from_pretrained(ctc).lm_head.weight)


def test_a_head_that_was_saved_nowhere_is_named_and_features_still_work(base, tmp_path):
    from transformers import Wav2Vec2ForCTC

    folder = adapter_of(Wav2Vec2ForCTC.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"lm_head.bias, lm_head.weight.*modules_to_save"):
        load_checkpoint(folder, base_model=base, with_head=True)
    theirs = merged(Wav2Vec2ForCTC.from_pretrained(base), folder).wav2vec2
    assert same_weights(load_checkpoint(folder, base_model=base).model, theirs)


# ------------------------------------------------------------------------------------ the base and the files


def test_the_base_is_named_by_the_config_by_a_path_beside_it_or_by_a_key(base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    expected = load_checkpoint(folder, base_model=base).model
    assert same_weights(load_checkpoint(folder).model, expected)
    rename(folder, "../base")
    assert load_checkpoint(folder).base_model == f"{folder}/../base"
    rename(folder, None)
    with pytest.raises(CheckpointError, match=r"does not name its base model: name it with model.base_model="):
        load_checkpoint(folder)
    rename(folder, "somebody/unreachable")
    with pytest.raises(CheckpointError, match=r"somebody/unreachable, cannot be used:[\s\S]*model.base_model= names"):
        load_checkpoint(folder)


def rename(folder, base):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_an_adapter_of_another_model_is_refused_by_its_weights(base, tmp_path):
    model = tiny_model("wav2vec2-layer", hidden_size=28)
    folder = adapter_of(model, KINDS["lora"](), tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"of shape \[3, 28\] instead of \[3, 24\]: .*lora_A"):
        load_checkpoint(folder, base_model=base)
    folder = adapter_of(tiny_model("wav2vec2-layer", num_hidden_layers=5), KINDS["lora"](), tmp_path / "deep")
    with pytest.raises(CheckpointError, match=r"unexpected: base_model.model.encoder.layers.4"):
        load_checkpoint(folder, base_model=base)
    folder = adapter_of(tiny_model("wav2vec2-layer", num_hidden_layers=1), KINDS["lora"](), tmp_path / "shallow")
    with pytest.raises(CheckpointError, match=r"missing: base_model.model.encoder.layers.1"):
        load_checkpoint(folder, base_model=base)
    folder = adapter_of(
        tiny_model("conformer-rotary"), peft.LoraConfig(target_modules=["linear_q"]), tmp_path / "other"
    )
    with pytest.raises(CheckpointError, match="does not fit the base model"):
        load_checkpoint(folder, base_model=base)


def test_a_base_for_a_checkpoint_that_is_no_adapter_is_refused(base):
    with pytest.raises(CheckpointError, match="is no adapter: leave it out"):
        load_checkpoint(base, base_model=base)


def test_prompt_tuning_is_refused_by_name(tmp_path, base):
    folder = tmp_path / "prompt"
    peft.PrefixTuningConfig(
        num_virtual_tokens=2, token_dim=24, num_layers=3, num_attention_heads=4, peft_type="PREFIX_TUNING"
    ).save_pretrained(folder)
    save_file({"prompt_embeddings": torch.zeros(2, 144)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"of the kind PREFIX_TUNING, which has no weights that could be merged"):
        load_checkpoint(folder, base_model=base)


def test_a_pickled_adapter_is_read_and_one_with_code_never_runs(base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    expected = load_checkpoint(folder).model
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()
    assert same_weights(load_checkpoint(folder).model, expected)
    ran = tmp_path / "ran"
    torch.save({"a": Evil(str(ran))}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(folder)
    assert not ran.exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_config_that_names_a_module_to_import_is_refused(base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"megatron_config": {"a": 1}, "megatron_core": "antigravity"})
    )
    with pytest.raises(CheckpointError, match="names a Python module to import"):
        load_checkpoint(folder)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("damage", ["truncated", "pointer", "no weights", "config", "kind"])
def test_a_damaged_adapter_is_refused(damage, base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    expected = {
        "truncated": "damaged or cut short",
        "pointer": "git lfs pull",
        "no weights": "but no weights",
        "config": "cannot be read",
        "kind": "'NEW', which the installed peft does not know",
    }[damage]
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "config":
        config.write_text("{")
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "NEW"}))
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(folder)


def test_weights_beside_an_adapter_are_its_base_as_in_transformers(tmp_path, caplog):
    from transformers import HubertModel

    base = save(tiny_model("hubert-group"), tmp_path / "base")
    folder = adapter_of(HubertModel.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    expected = load_checkpoint(folder).model
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base / name, folder)
    rename(folder, "somebody/unreachable")
    assert same_weights(load_checkpoint(folder).model, expected)
    assert "has both weights and a PEFT adapter" in caplog.text
    stock, wave = HubertModel.from_pretrained(folder).eval(), 0.1 * torch.randn(1, 4000)  # with the adapter attached
    with torch.no_grad():
        torch.testing.assert_close(expected(wave).last_hidden_state, stock(wave).last_hidden_state)
    (folder / "adapter_model.safetensors").unlink()
    assert same_weights(load_checkpoint(folder).model, HubertModel.from_pretrained(base))


def test_tokenizer_and_preprocessor_come_from_the_adapter_else_from_the_base(tmp_path):
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    options = peft.LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"])
    folder = adapter_of(Wav2Vec2ForCTC.from_pretrained(TINY), options, tmp_path / "adapter")
    found = load_checkpoint(folder, with_head=True)
    assert found.do_normalize
    assert (found.folder / "vocab.json").read_bytes() == (TINY / "vocab.json").read_bytes()
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    (folder / "vocab.json").write_text("{}")
    found = load_checkpoint(folder, with_head=True)
    assert not found.do_normalize
    assert (found.folder / "vocab.json").read_text() == "{}"
    assert not (found.folder / "tokenizer_config.json").exists()  # a tokenizer is taken as a whole


def test_an_adapter_on_top_of_an_adapter_is_merged_in_that_order(base, tmp_path):
    from transformers import Wav2Vec2Model

    first = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "first")
    whole = save(merged(Wav2Vec2Model.from_pretrained(base), first), tmp_path / "whole")
    second = adapter_of(Wav2Vec2Model.from_pretrained(whole), KINDS["ia3"](), tmp_path / "second")
    expected = merged(Wav2Vec2Model.from_pretrained(whole), second)
    assert same_weights(load_checkpoint(second, base_model=first).model, expected)


@pytest.mark.parametrize("inner_head", [None, 11, 13])
@pytest.mark.parametrize("outer_head", [None, 11, 17])
def test_heads_of_adapters_on_adapters_are_those_of_the_outermost_that_has_one(inner_head, outer_head, ctc, tmp_path):
    from transformers import Wav2Vec2ForCTC

    def tuned(base, head, name):
        """An adapter on a base, and peft's model with both."""
        size = {} if head is None else {"vocab_size": head, "ignore_mismatched_sizes": True}
        config = peft.LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=None if head is None else ["lm_head"])
        folder = adapter_of(Wav2Vec2ForCTC.from_pretrained(base, **size), config, tmp_path / name)
        return folder, merged(Wav2Vec2ForCTC.from_pretrained(base, **size), folder)

    inner, first = tuned(ctc, inner_head, "inner")
    outer, second = tuned(save(first, tmp_path / "whole"), outer_head, "outer")
    rename(outer, str(inner))
    found = load_checkpoint(outer, with_head=True).model
    assert same_weights(found, second)
    assert found.config.vocab_size == second.config.vocab_size
    assert same_weights(load_checkpoint(outer).model, second.wav2vec2)


def test_a_new_head_on_an_adapter_of_an_encoder_is_that_of_the_outer_adapter(base, tmp_path):
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Model

    inner = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "inner")
    whole = save(merged(Wav2Vec2Model.from_pretrained(base), inner), tmp_path / "whole")
    options = peft.LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"])
    outer = adapter_of(Wav2Vec2ForCTC.from_pretrained(whole, vocab_size=17), options, tmp_path / "outer")
    expected = merged(Wav2Vec2ForCTC.from_pretrained(whole, vocab_size=17), outer)
    rename(outer, str(inner))
    assert same_weights(load_checkpoint(outer, with_head=True).model, expected)


def test_an_adapter_beside_the_weights_of_a_base_is_merged_first(base, tmp_path):
    from transformers import Wav2Vec2Model

    inner = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "inner")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base / name, inner)
    whole = save(load_checkpoint(inner).model, tmp_path / "whole")
    outer = adapter_of(Wav2Vec2Model.from_pretrained(whole), KINDS["lora"](), tmp_path / "outer")
    expected = merged(Wav2Vec2Model.from_pretrained(whole), outer)
    rename(outer, str(inner))
    assert same_weights(load_checkpoint(outer).model, expected)


def test_without_peft_the_message_says_how_to_install_it(base, tmp_path, monkeypatch):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft.mapping", None)
    with pytest.raises(CheckpointError, match=r"needs the library peft: pip install 'w2v_attn\[finetune\]'"):
        load_checkpoint(folder)


def test_loading_leaves_the_random_numbers_of_the_caller_alone(base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    torch.manual_seed(0)
    load_checkpoint(base)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_checkpoint(folder)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------- as people have reported


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_compile_and_of_ddp_do_not_make_an_adapter_a_dead_one(prefix, base, tmp_path):
    """Soup #335: peft matches none of the names, only warns, and the adapter does nothing."""
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    expected, path = load_checkpoint(folder).model, folder / "adapter_model.safetensors"
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    assert same_weights(load_checkpoint(folder).model, expected)


def test_names_without_pefts_prefix_are_understood(base, tmp_path):
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    expected, path = load_checkpoint(folder).model, folder / "adapter_model.safetensors"
    save_file({n.removeprefix("base_model.model."): t for n, t in load_file(path).items()}, path)
    assert same_weights(load_checkpoint(folder).model, expected)


def test_weights_that_zero_left_empty_are_refused_with_the_cause(base, tmp_path):
    """peft #1328, #1443."""
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    save_file({name: torch.zeros(0) for name in load_file(path)}, path)
    with pytest.raises(CheckpointError, match=r"of shape \[0\] instead of [\s\S]*DeepSpeed's ZeRO had them sharded"):
        load_checkpoint(folder)


def test_an_adapter_of_another_name_is_in_a_folder_inside_which_is_named(base, tmp_path):
    """peft #2699: an adapter that is not called default, even one called lora."""
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter", adapter_name="mine")
    with pytest.raises(
        CheckpointError, match=r"contains the checkpoints mine: name one of them, such as .*adapter/mine"
    ):
        load_checkpoint(folder)
    theirs = merged(Wav2Vec2Model.from_pretrained(base), folder / "mine")
    assert same_weights(load_checkpoint(folder / "mine").model, theirs)


def test_updates_of_a_head_whose_own_weights_are_nowhere_are_refused(base, tmp_path):
    """peft #577: the head was put into target_modules instead of modules_to_save."""
    from transformers import Wav2Vec2ForCTC

    options = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    folder = adapter_of(Wav2Vec2ForCTC.from_pretrained(base), options, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"has the head that Wav2Vec2ForCTC needs \(lm_head"):
        load_checkpoint(folder, base_model=base, with_head=True)
    theirs = merged(Wav2Vec2ForCTC.from_pretrained(base), folder).wav2vec2
    assert same_weights(load_checkpoint(folder, base_model=base).model, theirs)


@pytest.mark.parametrize("what", ["both", "base"])
def test_without_a_network_adapter_and_base_come_from_the_cache(what, base, tmp_path, monkeypatch):
    """transformers #31700, #43746: neither asks the hub."""
    from huggingface_hub import constants
    from transformers import Wav2Vec2Model

    folder = adapter_of(Wav2Vec2Model.from_pretrained(base), KINDS["lora"](), tmp_path / "adapter")
    expected = load_checkpoint(folder).model
    rename(folder, "a/base")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, source in (("base", base), ("adapter", folder)):
        place = tmp_path / "cache" / f"models--a--{name}"
        shutil.copytree(source, place / "snapshots" / "c0ffee")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("c0ffee")
    assert same_weights(load_checkpoint("a/adapter" if what == "both" else folder).model, expected)
