"""What we rely on inside transformers: that it is there, and that a version without it is refused by name."""

import copy
from importlib import import_module
from itertools import chain

import pytest
import torch
import transformers
from conftest import CONFORMERS, SPEECH, save, tiny_bert, tiny_model
from conftest import FAMILIES as MODELS
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.output_capturing import OutputRecorder

from w2v_attn import MultiHeadSelfAttention, load_encoder, read_audio, replace_attention
from w2v_attn.checkpoints.families import FAMILIES
from w2v_attn.patching import compat


def attention_blocks(model):
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def padded_call(model, **options):
    mask = torch.ones(2, 4000, dtype=torch.long)
    mask[1, 2500:] = 0
    with torch.no_grad():
        return model(torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)), attention_mask=mask, **options)


# ------------------------------------------------------------------------------ what this transformers is like


@pytest.mark.parametrize(("module", "name"), FAMILIES.values(), ids=FAMILIES)
def test_attention_has_the_name_that_we_know(module, name):
    assert hasattr(import_module(module), name), f"transformers {transformers.__version__} has no {module}.{name}"


def test_attention_has_the_arguments_parts_and_attributes_that_we_know(family):
    for block in attention_blocks(tiny_model(family)):
        assert compat.attention_contract(block).differences(block) == []


@pytest.mark.parametrize(
    "family", [name for name in MODELS if name not in CONFORMERS]
)  # stock's encoder computes those
@pytest.mark.parametrize("changes", [{}, {"adapter_attn_dim": 5}, {"hidden_act": "relu"}], ids=str)
def test_encoders_and_frontends_have_the_parts_that_we_know(family, changes):
    model = tiny_model(family, **changes)
    assert model.encoder.config.layerdrop >= 0
    for known, module in chain(compat.frontend_contracts(model), compat.encoder_contracts(model.encoder)):
        assert known.differences(module) == [], type(module).__name__


@pytest.mark.parametrize("positions", ["relative_key", "relative", "rotary", None])
def test_attention_of_filter_banks_is_the_one_that_we_know(positions):
    for block in attention_blocks(tiny_bert(positions, add_adapter=True)):
        assert compat.attention_contract(block).differences(block) == []


def test_configs_and_classes_tell_the_same_norm_style(family):
    encoder = tiny_model(family).encoder
    stable = bool(getattr(encoder.config, "do_stable_layer_norm", False))
    assert type(encoder).__name__.endswith("StableLayerNorm") == stable == family.endswith("-layer")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_returns_as_many_values_as_ours(family, attention):
    theirs = tiny_model(family, attention=attention)
    ours = replace_attention(copy.deepcopy(theirs))
    assert values_returned(theirs) == values_returned(ours) in ([2, 2, 2], [3, 3, 3])


def values_returned(model):
    """How many values each attention block returns when the model runs."""
    found = []
    for block in attention_blocks(model):
        block.register_forward_hook(lambda _, __, output: found.append(len(output)))
    padded_call(model)
    return found


def test_attentions_and_hidden_states_are_recorded_from_our_classes_too(family):
    model = tiny_model(family)
    recorders = model._can_record_outputs
    attentions, states = recorders["attentions"], recorders["hidden_states"]
    module, name = FAMILIES[model.config.model_type]
    assert isinstance(attentions, OutputRecorder)
    assert (attentions.target_class, attentions.index) == (getattr(import_module(module), name), 1)
    assert type(model.encoder.layers[0]) in (states if isinstance(states, list) else [states])
    blocks = attention_blocks(replace_attention(model))
    assert all(isinstance(block, attentions.target_class) for block in blocks)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_masks_come_in_the_forms_that_we_read(norm_style, attention):
    config = tiny_model(norm_style).config
    config._attn_implementation = attention
    frames, real = torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool)
    assert create_bidirectional_mask(config=config, inputs_embeds=frames, attention_mask=real) is None
    real[1, 4:] = False
    mask = create_bidirectional_mask(config=config, inputs_embeds=frames, attention_mask=real)
    if attention == "flash_attention_2":
        assert torch.equal(mask.bool(), real)
        return
    assert mask.shape == (2, 1, 7, 7)
    if attention == "eager":
        assert mask.dtype == torch.float32
        assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}
        mask = mask == 0
    assert mask.dtype == torch.bool
    assert torch.equal(mask, real[:, None, None].expand(2, 1, 7, 7))


# ------------------------------------------------------------------------------ one that is not like that


def renewed(stock, **members):
    """A class as a later transformers might have it: of the same name, and with other members."""
    return type(
        stock.__name__, (stock,), {"__module__": stock.__module__, "__qualname__": stock.__qualname__, **members}
    )


def with_another_argument(block):
    def forward(self, hidden_states, key_value_states=None, attention_mask=None, position_embeddings=None, **kwargs):
        raise AssertionError("nobody calls it")

    block.__class__ = renewed(type(block), forward=forward)


def with_a_norm_of_queries(block):
    block.q_norm = nn.LayerNorm(6)


def with_sinks(block):
    block.sinks = nn.Parameter(torch.zeros(4))


def without_an_output_projection(block):
    del block.out_proj


def without_scaling(block):
    del block.scaling


def with_dropout_as_a_module(block):
    block.dropout = nn.Dropout(0.1)


def with_grouped_keys(block):
    block.k_proj, block.v_proj = nn.Linear(24, 12), nn.Linear(24, 12)


def causal(block):
    block.is_causal = True


def dispatched(block):
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(block, ModelHook())


CHANGES = {
    with_another_argument: r"expected forward\(hidden_states, .*\), found forward\(.*position_embeddings\)",
    with_a_norm_of_queries: "found the parts q_norm",
    with_sinks: "found the parts sinks",
    without_an_output_projection: "expected the parts out_proj",
    without_scaling: "expected scaling to be float, found None",
    with_dropout_as_a_module: r"expected dropout to be int or float, found Dropout\(p=0.1",
    with_grouped_keys: r"of one size, found \[12, 24\] channels",
    causal: "is_causal=True",
    dispatched: "found a forward on the instance",
}


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_attention_is_refused_by_name_and_the_model_stays_as_it_was(change, unpad):
    model = tiny_model("wav2vec2-group")
    change(model.encoder.layers[1].attention)
    with pytest.raises(ValueError, match=CHANGES[change]) as refused:
        replace_attention(model, unpad=unpad)
    assert f"Wav2Vec2Attention of transformers {transformers.__version__}" in str(refused.value)
    assert f'pip install "transformers>=5.17,<={compat.NEWEST_KNOWN}"' in str(refused.value)
    assert not any(isinstance(module, MultiHeadSelfAttention) for module in model.modules())
    assert type(model.encoder).__module__.startswith("transformers.")


def scaled(block):
    """Like a release that scales what leaves a block, which only its own forward knows."""
    stock = type(block)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        return self.layer_scale * stock.forward(self, hidden_states, attention_mask, **kwargs)

    block.__class__, block.layer_scale = renewed(stock, forward=forward), nn.Parameter(torch.tensor(0.5))


def test_an_encoder_of_other_blocks_is_not_unpadded():
    model = tiny_model("wav2vec2-layer")
    scaled(model.encoder.layers[2])
    with pytest.raises(ValueError, match=r"Wav2Vec2EncoderLayerStableLayerNorm .*parts layer_scale.*unpad=False"):
        replace_attention(model, unpad=True)
    assert type(model.encoder).__module__.startswith("transformers.")
    assert isinstance(replace_attention(model).encoder.layers[2].attention, MultiHeadSelfAttention)


def test_features_of_other_blocks_are_those_of_the_model(norm_style, tmp_path):
    encoder = load_encoder(save(tiny_model(norm_style), tmp_path / "model"))
    wave = read_audio(next(SPEECH.rglob("*.flac")))
    before = encoder.extract([wave])[0]["final"]
    scaled(encoder.model.encoder.layers[1])
    assert "layer_scale" in encoder.unpacked_reason
    with torch.no_grad():
        theirs = encoder.model(encoder.prepare(wave)[None]).last_hidden_state[0]
    ours = encoder.extract([wave])[0]["final"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours - before).abs().max() > 1e-2
