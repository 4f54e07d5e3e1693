"""torchaudio's modules and state dicts become Hugging Face's stage by stage, and come back bit for bit."""

import json

import pytest
import torch
import torchaudio
from conftest import FAMILIES, save, tiny_model
from safetensors.torch import save_file

from w2v_attn import load_encoder
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.export import export_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.encoder.inputs import Samples

LAYERS = [(24, 10, 5), *[(24, 3, 2)] * 4, *[(24, 2, 2)] * 2]
# As the released ones are, but small: what the builders of torchaudio.models say of each.
SMALL = {
    "base": {"extractor_mode": "group_norm", "extractor_conv_bias": False, "encoder_layer_norm_first": False},
    "large_lv60k": {"extractor_mode": "layer_norm", "extractor_conv_bias": True, "encoder_layer_norm_first": True},
    "hubert_large": {"extractor_mode": "layer_norm", "extractor_conv_bias": False, "encoder_layer_norm_first": True},
}
SIZES = {
    "extractor_conv_layer_config": LAYERS,
    "encoder_embed_dim": 20,
    "encoder_projection_dropout": 0.11,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 5,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.12,
    "encoder_ff_interm_features": 28,
    "encoder_ff_interm_dropout": 0.13,
    "encoder_dropout": 0.14,
    "encoder_layer_drop": 0.15,
}


def small(style, aux=None, **changes):
    """One of torchaudio's modules, tiny, with nothing left at zero or one -> (arguments, module)."""
    torch.manual_seed(0)
    arguments = {**SIZES, **SMALL[style], "aux_num_out": aux, **changes}
    return arguments, shaken(torchaudio.models.wav2vec2_model(**arguments))


def shaken(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def stages(module, wave):
    """What torchaudio's module makes of a waveform at every stage, by the names that the encoder here gives layers."""
    with torch.no_grad():
        convolved, _ = module.feature_extractor(wave[None], None)
        transformer = module.encoder.transformer
        projected = module.encoder.feature_projection(convolved)
        found = {"convolved": convolved, "projected": projected, "embed": transformer._preprocess(projected)}
        layers, _ = module.extract_features(wave[None])
        found |= {f"layer_{number:02d}": layer for number, layer in enumerate(layers, 1)}
        found["final"] = module.encoder(convolved)
        found["logits"] = module(wave[None])[0] if module.aux is not None else None
    return {name: value[0] for name, value in found.items() if value is not None}


def assert_same_stages(checkpoint, module, wave, bound=1e-4):
    """Every stage of the loaded checkpoint is torchaudio's; returns the largest differences, in standard deviations."""
    theirs = stages(module, wave)
    loaded = load_checkpoint(checkpoint, with_head=True)
    base = getattr(loaded.model, loaded.model.base_model_prefix) if "logits" in theirs else loaded.model
    with torch.no_grad():
        convolved = base.feature_extractor(wave[None]).transpose(1, 2)
        ours = {"convolved": convolved[0], "projected": base.feature_projection(convolved)[0][0]}
        if "logits" in theirs:
            ours["logits"] = loaded.model(wave[None]).logits[0]
    encoder = load_encoder(checkpoint)
    encoder.input = Samples(encoder.config, do_normalize=False)  # torchaudio's modules leave that to others
    ours |= encoder.extract([wave], layers="all")[0]
    assert ours.keys() == theirs.keys()
    differences = {name: float((ours[name] - theirs[name]).abs().max() / theirs[name].std()) for name in theirs}
    assert max(differences.values()) <= bound, differences
    return differences


def write(arguments, module, folder):
    """A file with the state dict; beside it, the arguments that no shape shows."""
    folder.mkdir(exist_ok=True)
    torch.save(module.state_dict(), folder / "weights.pt")
    hidden = ("encoder_num_heads", "encoder_layer_norm_first")
    (folder / "arguments.json").write_text(json.dumps({name: arguments[name] for name in hidden}))
    return folder / "weights.pt"


@pytest.mark.parametrize("aux", [None, 11])
@pytest.mark.parametrize("style", SMALL)
def test_every_stage_is_torchaudios(style, aux, tmp_path, speech):
    arguments, module = small(style, aux)
    assert_same_stages(module, module, speech[0])
    assert_same_stages(write(arguments, module, tmp_path / "a"), module, speech[0])


def test_the_check_of_the_stages_bites(speech):
    _, module = small("base", 11)
    other = small("base", 11)[1]
    with torch.no_grad():
        other.encoder.transformer.layers[1].final_layer_norm.weight.mul_(1.01)
    with pytest.raises(AssertionError):
        assert_same_stages(module, other, speech[0])


@pytest.mark.parametrize(
    ("builder", "aux"),
    [
        ("wav2vec2_base", 29),
        ("wav2vec2_large", None),
        ("wav2vec2_large_lv60k", 32),
        ("hubert_base", None),
        ("hubert_large", None),
        ("hubert_xlarge", 32),
        ("wav2vec2_xlsr_300m", None),
        ("wav2vec2_xlsr_1b", None),
        ("wav2vec2_xlsr_2b", None),
    ],
)
def test_released_architectures_are_known_by_their_shapes(builder, aux):
    from w2v_attn.checkpoints.convert import torchaudio_arguments as form

    with torch.device("meta"):
        module = getattr(torchaudio.models, builder)(aux_num_out=aux)
    found = form.arguments_from_weights("it", module.state_dict(), {})
    exact = form.arguments_of_module(module)
    unseen = {name for name in exact if "drop" in name}
    assert {name: found[name] for name in found.keys() - unseen} == {
        name: exact[name] for name in exact.keys() - unseen
    }
    with torch.device("meta"):
        rebuilt = torchaudio.models.wav2vec2_model(**exact)
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == {
        name: tensor.shape for name, tensor in module.state_dict().items()
    }


def test_the_names_before_parametrizations_and_safetensors_read_the_same(tmp_path, speech):
    arguments, module = small("large_lv60k", 11)
    path = write(arguments, module, tmp_path / "new")
    theirs = load_checkpoint(path, with_head=True).model.state_dict()
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in module.state_dict().items()
    }
    assert old.keys() != module.state_dict().keys()
    torch.save(old, path)
    assert_equal(load_checkpoint(path, with_head=True).model.state_dict(), theirs)
    save_file(old, path.with_suffix(".safetensors"))
    assert_equal(load_checkpoint(path.with_suffix(".safetensors"), with_head=True).model.state_dict(), theirs)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_the_input_is_normalised_as_the_bundles_do(tmp_path):
    from torchaudio.pipelines._wav2vec2.utils import _extend_model

    for style, normalises in (("base", False), ("large_lv60k", True)):
        arguments, module = small(style)
        assert load_checkpoint(module).do_normalize is normalises
        assert load_checkpoint(write(arguments, module, tmp_path / style)).do_normalize is normalises
    bundled = load_checkpoint(_extend_model(small("base")[1], normalize_waveform=True))
    assert bundled.do_normalize
    assert bundled.normalize_source == "the module"
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    beside = load_checkpoint(tmp_path / "base" / "weights.pt")
    assert beside.do_normalize
    assert beside.normalize_source == "the preprocessor config"


def test_the_bundles_table_of_normalisation_is_the_rule_here():
    pipelines = [getattr(torchaudio.pipelines, name) for name in dir(torchaudio.pipelines) if name.isupper()]
    bundles = [bundle for bundle in pipelines if getattr(bundle, "_model_type", None) == "Wav2Vec2"]
    assert len(bundles) > 10
    for bundle in bundles:
        assert bundle._normalize_waveform == (bundle._params["extractor_mode"] == "layer_norm")


# ------------------------------------------------------------------------------------------- there and back


CHECKPOINTS = [
    (family, head)
    for family in FAMILIES
    if family.startswith(("wav2vec2", "hubert"))
    for head in ("Model", "ForCTC", "ForSequenceClassification", "ForPreTraining")
    if (family, head) not in (("hubert-group", "ForPreTraining"), ("hubert-layer", "ForPreTraining"))
]


@pytest.mark.parametrize(("family", "head"), CHECKPOINTS)
def test_to_torchaudio_and_back_is_bit_identical(family, head, tmp_path, speech):
    theirs = tiny_model(family, head, hidden_dropout=0.3, mask_time_prob=0.07)
    there = tmp_path / "there"
    export_checkpoint(load_checkpoint(save(theirs, tmp_path / "hf"), with_head=True), there, format="torchaudio")

    arguments = json.loads((there / "arguments.json").read_text())
    module = torchaudio.models.wav2vec2_model(**arguments)
    module.load_state_dict(torch.load(there / "model.pt"), strict=True)
    with torch.no_grad():
        ours, _ = module.eval()(speech[0][None])
        stock = theirs(speech[0][None]) if head in ("Model", "ForCTC") else None
    if stock is not None:
        assert (ours - stock[0]).abs().max() < 1e-4

    back = load_checkpoint(there, with_head=True)
    assert type(back.model) is type(theirs)
    assert_equal(back.model.state_dict(), theirs.state_dict())
    assert back.do_normalize
    before, after = theirs.config.to_dict(), back.model.config.to_dict()
    assert {name for name in before if before[name] != after.get(name)} <= {"architectures", "dtype", "_name_or_path"}
    assert load_checkpoint(there).missing == ()


def test_a_state_dict_alone_comes_back_as_it_went(tmp_path):
    arguments, module = small("base", 11)
    export_checkpoint(load_checkpoint(module, with_head=True), tmp_path / "hf")
    export_checkpoint(load_checkpoint(tmp_path / "hf", with_head=True), tmp_path / "there", format="torchaudio")
    assert_equal(torch.load(tmp_path / "there" / "model.pt"), module.state_dict())
    written = json.loads((tmp_path / "there" / "arguments.json").read_text())
    assert {name: arguments[name] for name in written} | {"extractor_conv_layer_config": [list(x) for x in LAYERS]} == (
        written
    )


def test_the_command_converts_both_ways(call, tmp_path):
    import transformers

    code, out, err = call("load", f"output={tmp_path / 'there'}", "format=torchaudio")
    assert code == 0, err
    code, out, err = call("load", f"model.checkpoint={tmp_path / 'there'}", f"output={tmp_path / 'back'}")
    assert code == 0, err
    assert "torchaudio" in out
    stock = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "back")
    assert_equal(stock.state_dict(), load_checkpoint(tmp_path / "there", with_head=True).model.state_dict())
    transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "back")
    code, _, err = call("load", f"output={tmp_path / 'x'}", "format=onnx")
    assert code == 2
    assert "one of huggingface, torchaudio, wav2vec2" in err
    assert not (tmp_path / "x").exists()
    code, _, err = call("load", "format=torchaudio")
    assert code == 2
    assert "output=FOLDER" in err


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("data2vec-audio", {}, "family data2vec-audio"),
        ("hubert-group", {"feat_proj_layer_norm": False}, "feat_proj_layer_norm=False"),
        ("hubert-group", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True"),
        ("wav2vec2-group", {"hidden_act": "relu"}, "hidden_act=relu"),
        ("wav2vec2-group", {"feat_extract_activation": "relu"}, "feat_extract_activation=relu"),
        ("wav2vec2-group", {"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06"),
        ("wav2vec2-layer", {"add_adapter": True}, "add_adapter=True"),
        ("wav2vec2-layer", {"adapter_attn_dim": 4}, "adapter_attn_dim=4"),
    ],
)
def test_what_torchaudio_has_no_place_for_is_reported_and_nothing_is_written(family, changes, said, tmp_path):
    checkpoint = load_checkpoint(save(tiny_model(family, **changes), tmp_path / "hf"))
    with pytest.raises(CheckpointError, match=said):
        export_checkpoint(checkpoint, tmp_path / "there", format="torchaudio")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_sizes_that_no_shape_tells_are_asked_for(tmp_path):
    arguments, module = small("base")
    path = write(arguments, module, tmp_path / "a")
    (path.parent / "arguments.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"the number of heads and whether the layer norm comes first.*arguments\.json"
    ):
        load_checkpoint(path)
    (path.parent / "arguments.json").write_text('{"encoder_num_heads": 4}')
    with pytest.raises(CheckpointError, match=r"do not show whether the layer norm comes first"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "expected an object"),
        ('{"heads": 4}', "has heads"),
        ('{"encoder_num_heads": "many", "encoder_layer_norm_first": false}', "not valid"),
        ('{"extractor_mode": "batch"}', "extractor_mode"),
        ('{"extractor_mode": {}}', "extractor_mode"),
        ('{"extractor_conv_layer_config": 7}', "extractor_conv_layer_config"),
        ('{"encoder_num_heads": 3, "encoder_layer_norm_first": false}', "not valid"),
    ],
)
def test_invalid_arguments_are_reported(text, said, tmp_path):
    path = write(*small("base"), tmp_path / "a")
    (path.parent / "arguments.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_missing_misshaped_and_unexpected_keys_are_named_as_torchaudio_has_them(tmp_path):
    path = write(*small("base", 11), tmp_path / "a")
    state = torch.load(path)
    del state["encoder.transformer.layers.1.attention.k_proj.weight"]
    state["encoder.transformer.layers.2.feed_forward.output_dense.bias"] = torch.zeros(5)
    state["quantizer.weight"] = torch.zeros(2)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert "missing: encoder.transformer.layers.1.attention.k_proj.weight" in text
    assert "of shape [5] instead of [20]: encoder.transformer.layers.2.feed_forward.output_dense.bias" in text
    assert "unexpected: quantizer.weight" in text
    assert text.count("\n  ") == 3


def test_a_loaded_model_does_not_follow_its_module():
    _, module = small("base")
    loaded = load_checkpoint(module)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    shaken(module)
    assert_equal(loaded.model.state_dict(), before)


def test_modules_of_another_kind_are_reported():
    with pytest.raises(CheckpointError, match="a Linear was given"):
        load_encoder(torch.nn.Linear(2, 2))
    with torch.device("meta"):
        wavlm = torchaudio.models.wavlm_base()
    with pytest.raises(CheckpointError, match=r"not a wav2vec 2\.0 or HuBERT encoder"):
        load_encoder(wavlm)
