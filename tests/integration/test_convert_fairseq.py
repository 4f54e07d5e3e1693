"""fairseq's checkpoints become Hugging Face's bit for bit, and no pickle runs code on the way."""

import argparse
import builtins
import enum
import json
import os
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TINY, tiny_model

from w2v_attn import load_encoder
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.convert import pickles
from w2v_attn.checkpoints.convert.fairseq_config import parse_convolutions
from w2v_attn.checkpoints.export import export_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.transcription.load_recognizer import load_recognizer

LETTERS = ("|", "E", "T", "A", "O", "N", "'")  # 11 outputs with the four special symbols

# What stands in a name of Hugging Face's -> in fairseq's, in this order. Written for the tests, not from the package.
RENAMED = [
    (r"\.parametrizations\.weight\.original0", ".weight_g"),
    (r"\.parametrizations\.weight\.original1", ".weight_v"),
    (r"^masked_spec_embed", "mask_emb"),
    (r"^feature_projection\.projection", "post_extract_proj"),
    (r"^feature_projection\.", ""),
    (r"^(feature_extractor\.conv_layers\.\d)\.conv\.", r"\1.0."),
    (r"^encoder\.pos_conv_embed\.batch_norm", "encoder.pos_conv.0"),
    (r"^encoder\.pos_conv_embed\.conv", "encoder.pos_conv.0"),
    (r"(layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"\.attention\.", ".self_attn."),
    (r"\.feed_forward\.intermediate_dense", ".fc1"),
    (r"\.feed_forward\.output_dense", ".fc2"),
    (r"^quantizer\.codevectors", "quantizer.vars"),
    (r"^project_hid", "final_proj"),
]


def in_fairseq(model):
    """The weights of a stock model under the names that fairseq's checkpoints have."""
    tuned = type(model).__name__.endswith("ForCTC")
    norm = r"\1.2.1." if model.config.feat_extract_norm == "layer" else r"\1.2."
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix(f"{model.base_model_prefix}.")
        head = name.startswith("lm_head")
        if getattr(model.config, "conv_pos_batch_norm", False):
            name = name.replace("encoder.pos_conv_embed.conv", "encoder.pos_conv.1")
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d)\.layer_norm\.", norm, name)
        for pattern, there in RENAMED:
            name = re.sub(pattern, there, name)
        name = name.replace("lm_head", "w2v_encoder.proj")
        state[f"w2v_encoder.w2v_model.{name}" if tuned and not head else name] = tensor
    return state


def options(model, kind):
    """The options of a pre-trained model, as fairseq writes them."""
    config = model.config
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    first, *rest = [str(layer) for layer in layers]
    return {
        "_name": kind,
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "dropout": 0.11,
        "attention_dropout": 0.12,
        "activation_dropout": 0.13,
        "encoder_layerdrop": 0.14,
        "dropout_input": 0.15,
        "dropout_features": 0.16,
        "final_dim": getattr(config, "proj_codevector_dim", 0),
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": f"[{first}] + " + " + ".join(f"[{layer}]" for layer in rest),
        "conv_bias": config.conv_bias,
        "logit_temp": 0.17,
        "quantize_targets": kind == "wav2vec2",
        "quantize_input": False,
        "target_glu": False,
        "latent_vars": getattr(config, "num_codevectors_per_group", 320),
        "latent_groups": getattr(config, "num_codevector_groups", 2),
        "latent_dim": getattr(config, "codevector_dim", 0),
        "mask_prob": 0.65,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "conv_pos_batch_norm": getattr(config, "conv_pos_batch_norm", False),
    }


TUNING = {
    "w2v_path": "/nowhere/pretrained.pt",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.1,
    "dropout_input": 0.0,
    "final_dropout": 0.21,
    "layerdrop": 0.05,
    "apply_mask": True,
    "mask_prob": 0.5,
    "mask_length": 10,
    "mask_channel_prob": 0.1,
    "mask_channel_length": 64,
}
TASK = {"_name": "audio_pretraining", "sample_rate": 16_000, "labels": None}


def config_of(model, kind, form, normalize):
    """The config of a checkpoint in one of fairseq's forms; that of a tuned one has the pre-trained one's inside."""
    pretrained, task = options(model, kind), {**TASK, "normalize": normalize}
    tuned = type(model).__name__.endswith("ForCTC")
    if form == "args":
        flat = argparse.Namespace(**{**pretrained, **task, "arch": kind, "_name": None})
        if not tuned:
            return {"args": flat, "cfg": None}
        top = {**TASK, "normalize": normalize, "labels": "ltr", **TUNING, "arch": TUNED[kind], "_name": None}
        return {"args": argparse.Namespace(**{**top, "w2v_args": flat})}
    whole = {"_name": None, "model": pretrained, "task": task}
    if tuned:
        task = {**task, "labels": "ltr"}
        whole = {"_name": None, "model": {"_name": TUNED[kind], **TUNING, "w2v_args": whole}, "task": task}
    if form == "omegaconf":
        from omegaconf import OmegaConf

        whole = OmegaConf.create(whole)
    return {"args": None, "cfg": whole}


TUNED = {"wav2vec2": "wav2vec_ctc", "hubert": "hubert_ctc"}


@pytest.fixture
def fairseq_classes(monkeypatch):
    """Classes that pickle under fairseq's names, as its checkpoints have them; gone again before anything is read."""

    class Dictionary:
        def __init__(self, symbols):
            self.symbols, self.indices = symbols, {symbol: i for i, symbol in enumerate(symbols)}

    class Choices(enum.Enum):
        layer_norm = "layer_norm"
        default = "default"

    made = {"fairseq.data.dictionary": Dictionary, "fairseq.dataclass.constants": Choices}
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in made.items():
            kind.__module__, kind.__qualname__ = name, kind.__name__
            module = types.ModuleType(name)
            setattr(module, kind.__name__, kind)
            patch.setitem(sys.modules, name, module)
        for name in ("fairseq", "fairseq.data", "fairseq.dataclass"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        yield Dictionary, Choices, patch


def write(model, kind, path, *, form="cfg", normalize=True, zipped=True, **more):
    checkpoint = {
        **config_of(model, kind, form, normalize),
        "model": in_fairseq(model),
        "optimizer_history": [{"criterion_name": "Wav2vecCriterion", "best_loss": 1.5}],
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "extra_state": {"epoch": 3, "best": np.float64(1.5)},
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    return path


def write_dictionary(folder, symbols=LETTERS):
    (folder / "dict.ltr.txt").write_text("".join(f"{symbol} {100 - i}\n" for i, symbol in enumerate(symbols)))


CASES = [
    (f"{kind}-{norm}", head, kind)
    for kind in ("wav2vec2", "hubert")
    for norm in ("group", "layer")
    for head in ("pretrained", "tuned")
]


def stock(family, head, kind, **changes):
    if head == "tuned":
        return tiny_model(family, "ForCTC", **changes)
    if kind == "hubert":
        return tiny_model(family, **changes)
    sizes = {"num_codevectors_per_group": 7, "codevector_dim": 6, "proj_codevector_dim": 5}
    return tiny_model(family, "ForPreTraining", **sizes, **changes)


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("form", ["cfg", "args", "omegaconf"])
@pytest.mark.parametrize(("family", "head", "kind"), CASES)
def test_a_checkpoint_becomes_the_stock_model_bit_for_bit(family, head, kind, form, tmp_path):
    theirs = stock(family, head, kind)
    path = write(theirs, kind, tmp_path / "checkpoint.pt", form=form, normalize=family.endswith("layer"))
    loaded = load_checkpoint(path, with_head=True)
    assert_same(loaded.model, theirs)
    assert loaded.do_normalize == family.endswith("layer")
    assert loaded.missing == loaded.unexpected == ()
    wave = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.model(wave[None])[0], theirs(wave[None])[0])


@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer"])
def test_the_encoder_alone_gives_stock_features_and_lists_its_heads(family, tmp_path, speech):
    theirs = stock(family, "pretrained", "wav2vec2")
    encoder = load_encoder(write(theirs, "wav2vec2", tmp_path / "small.pt", normalize=False))
    assert "quantizer.vars" in encoder.checkpoint.unexpected
    assert "final_proj.bias" in encoder.checkpoint.unexpected
    features = encoder.extract(speech[:1])[0]["final"]
    with torch.no_grad():
        assert (features - theirs.wav2vec2(speech[0][None]).last_hidden_state[0]).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "head", "kind"), [case for case in CASES if case[1] == "tuned"])
def test_torchaudios_own_reader_of_these_names_makes_the_same_function(family, head, kind, tmp_path, speech):
    import torchaudio
    from torchaudio.models.wav2vec2.utils import import_fairseq

    model = stock(family, head, kind)
    loaded = load_checkpoint(write(model, kind, tmp_path / "ft.pt"), with_head=True)
    inside = {name.removeprefix("w2v_encoder."): tensor for name, tensor in in_fairseq(model).items()}
    config = model.config
    theirs = torchaudio.models.wav2vec2_model(
        extractor_mode=f"{config.feat_extract_norm}_norm",
        extractor_conv_layer_config=list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)),
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.hidden_size,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.num_conv_pos_embeddings,
        encoder_pos_conv_groups=config.num_conv_pos_embedding_groups,
        encoder_num_layers=config.num_hidden_layers,
        encoder_num_heads=config.num_attention_heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=config.intermediate_size,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=config.do_stable_layer_norm,
        encoder_layer_drop=0.0,
        aux_num_out=config.vocab_size,
    ).eval()
    theirs.load_state_dict(import_fairseq._convert_state_dict(inside), strict=True)
    with torch.no_grad():
        difference = loaded.model(speech[0][None]).logits - theirs(speech[0][None])[0]
    assert difference.abs().max() < 1e-4


BASE = {
    "conv_dim": (512,) * 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "vocab_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
LARGE = {**BASE, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
REAL = {"wav2vec2-group": BASE, "wav2vec2-layer": LARGE, "hubert-group": BASE, "hubert-layer": LARGE}


@pytest.mark.parametrize(("family", "head", "kind"), CASES)
def test_in_real_sizes_every_weight_has_its_place(family, head, kind):
    import transformers

    from w2v_attn.checkpoints.convert.fairseq_checkpoint import read_fairseq
    from w2v_attn.checkpoints.convert.raw_checkpoint import make_config, make_model

    prefix, norms = FAMILIES[family]
    name = "ForCTC" if head == "tuned" else "ForPreTraining" if kind == "wav2vec2" else "Model"
    with torch.device("meta"):
        theirs = getattr(transformers, f"{prefix}{name}")(
            getattr(transformers, f"{prefix}Config")(**{**REAL[family], **norms})
        )
    found = {**config_of(theirs, kind, "cfg", True), "model": in_fairseq(theirs)}
    found["cfg"].get("model", {}).get("w2v_args", found["cfg"])["model"]["conv_feature_layers"] = (
        "[(512,10,5)] + [(512,3,2)]*4 + [(512,2,2)]*2"
    )
    parts = read_fairseq(Path("checkpoint.pt"), found)
    ours, missing, unexpected = make_model(parts, type(theirs), make_config(parts), torch.float32)
    assert missing == unexpected == ()
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    for option in ("conv_dim", "conv_kernel", "conv_stride", *BASE, "do_stable_layer_norm", "feat_extract_norm"):
        there = getattr(theirs.config, option)
        assert getattr(ours.config, option) == (list(there) if isinstance(there, tuple) else there), option


def test_the_form_before_zip_reads_the_same(tmp_path):
    theirs = stock("wav2vec2-group", "tuned", "wav2vec2")
    path = write(theirs, "wav2vec2", tmp_path / "old.pt", form="args", zipped=False)
    assert path.read_bytes()[:1] == b"\x80"
    assert_same(load_checkpoint(path, with_head=True).model, theirs)


def test_hubert_leaves_what_its_pretraining_alone_uses(tmp_path, fairseq_classes):
    dictionary, _, patch = fairseq_classes
    theirs = stock("hubert-group", "pretrained", "hubert")
    objective = {
        "final_proj.weight": torch.ones(5, 24),
        "final_proj.bias": torch.ones(5),
        "label_embs_concat": torch.ones(9, 5),
    }
    path = write(theirs, "hubert", tmp_path / "a.pt", task_state={"dictionaries": [dictionary(["0", "1"])]})
    whole = torch.load(path, weights_only=False)
    whole["model"].update(objective)
    torch.save(whole, path)
    patch.undo()
    loaded = load_checkpoint(path, with_head=True)
    assert_same(loaded.model, theirs)
    assert set(loaded.unexpected) == set(objective)


def test_a_gated_objective_which_stock_has_no_place_for_leaves_the_encoder(tmp_path):
    theirs = stock("wav2vec2-group", "pretrained", "wav2vec2")
    path = write(theirs, "wav2vec2", tmp_path / "a.pt")
    whole = torch.load(path, weights_only=False)
    whole["cfg"]["model"]["target_glu"] = True
    whole["model"]["target_glu.0.weight"] = torch.ones(10, 5)
    torch.save(whole, path)
    loaded = load_checkpoint(path, with_head=True)
    assert_same(loaded.model, theirs.wav2vec2)
    assert {"target_glu.0.weight", "quantizer.vars", "final_proj.weight"} <= set(loaded.unexpected)


def test_the_config_says_what_the_checkpoint_says(tmp_path):
    theirs = stock("wav2vec2-layer", "pretrained", "wav2vec2")
    config = load_checkpoint(write(theirs, "wav2vec2", tmp_path / "a.pt"), with_head=True).model.config
    expected = {
        "hidden_dropout": 0.11,
        "attention_dropout": 0.12,
        "activation_dropout": 0.13,
        "layerdrop": 0.14,
        "feat_proj_dropout": 0.15,
        "feat_quantizer_dropout": 0.16,
        "contrastive_logits_temperature": 0.17,
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "hidden_act": "gelu",
    }
    assert {name: getattr(config, name) for name in expected} == expected
    tuned = load_checkpoint(
        write(stock("hubert-group", "tuned", "hubert"), "hubert", tmp_path / "b.pt"), with_head=True
    )
    expected = {
        "hidden_dropout": 0.0,
        "activation_dropout": 0.1,
        "final_dropout": 0.21,
        "layerdrop": 0.05,
        "mask_time_prob": 0.5,
        "mask_feature_prob": 0.1,
        "mask_feature_length": 64,
        "vocab_size": 11,
        "pad_token_id": 0,
    }
    assert {name: getattr(tuned.model.config, name) for name in expected} == expected


def test_batch_norm_before_the_positional_convolution_is_kept(tmp_path):
    theirs = stock("hubert-group", "pretrained", "hubert", conv_pos_batch_norm=True)
    assert_same(load_checkpoint(write(theirs, "hubert", tmp_path / "m.pt")).model, theirs)


def test_half_precision_weights_become_the_dtype_that_is_asked_for(tmp_path):
    theirs = stock("wav2vec2-group", "tuned", "wav2vec2").half()
    path = write(theirs, "wav2vec2", tmp_path / "half.pt")
    assert_same(load_checkpoint(path, with_head=True).model, theirs.float())
    assert load_checkpoint(path, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_loaded_model_does_not_follow_its_file(tmp_path):
    theirs = stock("wav2vec2-group", "tuned", "wav2vec2")
    path = write(theirs, "wav2vec2", tmp_path / "a.pt")
    loaded = load_checkpoint(path, with_head=True)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same(loaded.model, theirs)


# -------------------------------------------------------------------------------------------- vocabulary


def test_a_tuned_checkpoint_becomes_a_folder_that_stock_transcribes_with(tmp_path):
    import transformers

    theirs = stock("wav2vec2-layer", "tuned", "wav2vec2")
    path = write(theirs, "wav2vec2", tmp_path / "from" / "ft.pt")
    write_dictionary(path.parent)
    export_checkpoint(load_checkpoint(path, with_head=True), tmp_path / "copy")
    assert_same(transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "copy"), theirs)
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "copy")
    assert processor.feature_extractor.do_normalize
    assert processor.tokenizer.get_vocab() == {
        **{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3},
        **{letter: 4 + i for i, letter in enumerate(LETTERS)},
    }
    # fairseq's blank is the first output: it goes, what repeats is one, and | is a space.
    assert processor.tokenizer.decode([0, 6, 6, 0, 6, 5, 4, 4, 0, 7]) == "TTE A"
    assert transformers.AutoConfig.from_pretrained(tmp_path / "copy").pad_token_id == processor.tokenizer.pad_token_id


def test_the_embedded_checkpoint_says_the_same_in_fairseqs_form(tmp_path, speech):
    theirs = load_checkpoint(TINY, with_head=True)
    path = write(theirs.model, "wav2vec2", tmp_path / "tiny.pt", form="args", normalize=theirs.do_normalize)
    symbols = sorted(json.loads((TINY / "vocab.json").read_text()).items(), key=lambda item: item[1])
    write_dictionary(tmp_path, [symbol for symbol, _ in symbols[4:]])
    ours, stock = load_recognizer(path), load_recognizer(TINY)
    said = [[recognizer.recognize(wave).text for wave in speech] for recognizer in (ours, stock)]
    assert said[0] == said[1]
    assert any(said[0])


def test_commands_take_the_file_itself(call, tmp_path, clips):
    path = write(stock("wav2vec2-layer", "tuned", "wav2vec2"), "wav2vec2", tmp_path / "ft.pt")
    code, _, err = call("transcribe", f"audio={clips[0][0]}", f"model.checkpoint={path}", "output=heard")
    assert code == 2
    assert "dict.ltr.txt" in err
    write_dictionary(tmp_path)
    code, _, err = call("transcribe", f"audio={clips[0][0]}", f"model.checkpoint={path}", "output=heard")
    assert code == 0, err
    code, _, err = call("extract", f"audio={clips[0][0]}", f"model.checkpoint={path}", "output=features")
    assert code == 0, err
    code, out, err = call("load", f"model.checkpoint={path}", "output=copy")
    assert code == 0, err
    assert "wav2vec_ctc" in out
    assert (tmp_path / "copy" / "model.safetensors").is_file()


def test_the_dictionary_inside_a_checkpoint_serves_where_there_is_none_beside_it(tmp_path, fairseq_classes):
    dictionary, choices, patch = fairseq_classes
    theirs = stock("hubert-layer", "tuned", "hubert")
    state = {"target_dictionary": dictionary(["<s>", "<pad>", "</s>", "<unk>", *LETTERS])}
    path = write(theirs, "hubert", tmp_path / "ft.pt", task_state=state)
    whole = torch.load(path, weights_only=False)
    whole["cfg"]["model"]["w2v_args"]["model"]["extractor_mode"] = choices.layer_norm
    torch.save(whole, path)
    patch.undo()
    assert "fairseq" not in sys.modules
    loaded = load_checkpoint(path, with_head=True)
    assert_same(loaded.model, theirs)
    assert '"E": 5' in (loaded.folder / "vocab.json").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [("| 5\nE 4\n", "11 outputs"), ("| 5\nE\n", "line 2"), ("| 5\n" * 7, "each symbol once")],
)
def test_an_invalid_dictionary_is_reported(text, said, tmp_path):
    path = write(stock("wav2vec2-group", "tuned", "wav2vec2"), "wav2vec2", tmp_path / "ft.pt")
    (tmp_path / "dict.ltr.txt").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path, with_head=True)


# ---------------------------------------------------------------------------------------------- refusals


def test_missing_misshaped_and_unexpected_keys_are_named_as_the_file_has_them(tmp_path):
    theirs = stock("wav2vec2-group", "tuned", "wav2vec2")
    path = write(theirs, "wav2vec2", tmp_path / "ft.pt")
    whole = torch.load(path, weights_only=False)
    inside = "w2v_encoder.w2v_model"
    del whole["model"][f"{inside}.encoder.layers.1.self_attn.k_proj.weight"]
    whole["model"][f"{inside}.encoder.layers.2.fc2.bias"] = torch.zeros(5)
    whole["model"][f"{inside}.encoder.layer_norm.bias"] = torch.zeros(24, dtype=torch.int64)
    whole["model"][f"{inside}.adapters.0.weight"] = torch.zeros(2)
    whole["model"]["layer_norm.weight"] = torch.zeros(17)  # of the encoder, but outside of it
    torch.save(whole, path)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(path)
    text = str(caught.value)
    assert f"missing: {inside}.encoder.layers.1.self_attn.k_proj.weight" in text
    assert f"of shape [5] instead of [24]: {inside}.encoder.layers.2.fc2.bias" in text
    assert f"unexpected: {inside}.adapters.0.weight" in text
    assert "unexpected: layer_norm.weight" in text
    assert f"of torch.int64: {inside}.encoder.layer_norm.bias" in text
    assert text.count("\n  ") == 5


def test_a_tuned_checkpoint_without_the_config_inside_takes_the_one_it_started_from(tmp_path):
    theirs = stock("wav2vec2-layer", "tuned", "wav2vec2")
    path = write(theirs, "wav2vec2", tmp_path / "ft.pt")
    whole = torch.load(path, weights_only=False)
    whole["cfg"]["model"]["w2v_args"] = None  # as fairseq-hydra-train leaves it
    torch.save(whole, path)
    with pytest.raises(CheckpointError, match=r"Copy that file next to it, as .*/pretrained.pt"):
        load_checkpoint(path, with_head=True)
    write(stock("wav2vec2-layer", "pretrained", "wav2vec2"), "wav2vec2", tmp_path / "pretrained.pt")
    assert_same(load_checkpoint(path, with_head=True).model, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_name": "data2vec_audio"}, "Supported are: wav2vec2, hubert, wav2vec_ctc, hubert_ctc"),
        ({"_name": None}, "which model"),
        ({"encoder_layers": None}, "encoder_layers"),
        ({"encoder_attention_heads": 7}, "not valid"),
        ({"extractor_mode": "batch"}, "default or layer_norm"),
        ({"activation_fn": "snake"}, "snake"),
        ({"layer_type": "conformer"}, "conformer"),
        ({"quantize_input": True}, "quantize_input"),
        ({"conv_feature_layers": "__import__('os').mkdir('it-ran')"}, "cannot be read"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_kept_is_reported(change, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(stock("wav2vec2-group", "pretrained", "wav2vec2"), "wav2vec2", tmp_path / "a.pt")
    whole = torch.load(path, weights_only=False)
    whole["cfg"]["model"].update(change)
    torch.save(whole, path)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)
    assert not (tmp_path / "it-ran").exists()


def test_the_convolutions_are_read_and_not_evaluated(tmp_path):
    assert parse_convolutions("[(512,10,5)] + [(512, 3, 2)]*4 + [(512,2,2)] * 2", tmp_path) == [
        (512, 10, 5),
        *[(512, 3, 2)] * 4,
        *[(512, 2, 2)] * 2,
    ]
    for wrong in (
        "",
        "[]",
        "3",
        "[(1, 2)]",
        "[(1, 2, x)]",
        "[(1,2,3)] * 10**9",
        "[(1,2,3)]*100*100*100",
        "(" * 9999,
        7,
    ):
        with pytest.raises(CheckpointError, match="cannot be read"):
            parse_convolutions(wrong, tmp_path)


class Calls:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["args", "model", "task_state", "top"])
@pytest.mark.parametrize("what", ["os.system", "eval", "getattr", "class"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(what, where, zipped, tmp_path):
    ran = tmp_path / "it-ran"
    bomb = {
        "os.system": lambda: Calls(os.system, f"touch {ran}"),
        "eval": lambda: Calls(builtins.eval, f"__import__('os').mkdir({str(ran)!r})"),
        "getattr": lambda: Calls(getattr, argparse.Namespace(), "__class__"),
        "class": lambda: Calls(os.mkdir, str(ran)),
    }[what]()
    path = write(stock("wav2vec2-group", "pretrained", "wav2vec2"), "wav2vec2", tmp_path / "a.pt", form="args")
    whole = torch.load(path, weights_only=False)
    if where == "args":
        whole["args"].criterion = bomb
    elif where == "top":
        whole = bomb
    else:
        whole.setdefault(where, {})["bomb"] = bomb
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused.*Nothing of it was run"):
        load_encoder(path)
    assert not ran.exists()
    if what != "getattr":  # that the bomb is one: Python's own reader sets it off
        torch.load(path, weights_only=False)
        assert ran.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_and_does_not_run(protocol, tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Calls(os.mkdir, str(tmp_path / "it-ran")), protocol))
    with pytest.raises(CheckpointError):
        load_encoder(tmp_path / "a.pt")
    assert not (tmp_path / "it-ran").exists()


def test_a_stand_in_stores_its_arguments_and_does_nothing(tmp_path, fairseq_classes):
    dictionary, _, patch = fairseq_classes
    dictionary.__reduce__ = lambda self: (
        dictionary,
        (["a"],),
        {"symbols": ["b"], "hook": argparse.Namespace(x=(1, 2))},
    )
    torch.save({"d": dictionary(["c"]), "shared": [[torch.ones(2)]] * 2}, tmp_path / "a.pt")
    patch.undo()
    found = pickles.read_pickle(tmp_path / "a.pt")
    assert found["d"] == {"symbols": ["b"], "hook": {"x": [1, 2]}}
    assert found["shared"][0] is found["shared"][1]


@pytest.mark.parametrize("length", [0, 3, 1000, -1000])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_short_is_reported(zipped, length, tmp_path):
    path = write(stock("wav2vec2-group", "tuned", "wav2vec2"), "wav2vec2", tmp_path / "a.pt", zipped=zipped)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError):
        load_encoder(path)


def test_files_that_are_no_checkpoint_are_reported(tmp_path, group_checkpoint):
    with pytest.raises(CheckpointError, match="name the folder with"):
        load_encoder(group_checkpoint / "model.safetensors")
    torch.save({"state": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="tensors such as state"):
        load_encoder(tmp_path / "x.pt")
    (tmp_path / "song.wav").write_bytes(b"RIFF and so on")
    with pytest.raises(CheckpointError, match="is a file, but no checkpoint"):
        load_encoder(tmp_path / "song.wav")
