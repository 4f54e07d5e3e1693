"""Models that somebody changed: what is put into them is called and followed, or the call raises; never ignored."""

import copy
import functools
import gc
import threading
import weakref

import pytest
import torch
from conftest import FAMILIES, save, tiny_bert, tiny_model
from test_no_silent_errors import a_batch, noise, stock_of, theirs
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers import activations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from w2v_attn import MultiHeadSelfAttention, load_encoder, replace_attention, restore_attention
from w2v_attn.encoder.encoder import Encoder

LAYERS = ("layer_02", "final")


@pytest.fixture
def encoder(tmp_path):
    return load_encoder(save(tiny_model("wav2vec2-layer"), tmp_path / "model"))


def is_stocks(encoder, seconds=0.4):
    (wave,) = noise(seconds)
    (ours,) = encoder.extract([wave], LAYERS)
    for layer, expected in theirs(encoder, wave).items():
        torch.testing.assert_close(ours[layer], expected, rtol=1e-4, atol=1e-4)


def stock_class(module):
    return next(cls for cls in type(module).__mro__ if cls.__module__.startswith("transformers."))


@pytest.fixture
def replaced(monkeypatch):
    """Replaces the forward of a class by one that gives twice as much, as decorators do."""

    def replace(cls, wrap=True):
        inner = cls.forward

        def forward(self, *args, **kwargs):
            output = inner(self, *args, **kwargs)
            return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

        monkeypatch.setattr(cls, "forward", functools.wraps(inner)(forward) if wrap else forward)

    return replace


def parts(model):
    encoder = model.encoder
    return {
        "linear": encoder.layers[0].attention.q_proj,
        "norm": encoder.layers[0].layer_norm,
        "feed-forward": encoder.layers[0].feed_forward,
        "positions": encoder.pos_conv_embed,
        "convolution": model.feature_extractor.conv_layers[1],
        "projection": model.feature_projection,
    }


@pytest.mark.parametrize("part", ["linear", "norm", "feed-forward", "positions", "convolution", "projection"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_forward_replaced_on_a_class_is_called(part, warm, encoder, replaced):
    if warm:
        encoder.extract(noise(0.4))
    replaced(type(parts(encoder.model)[part]))
    is_stocks(encoder)


@pytest.mark.parametrize("part", ["linear", "norm", "feed-forward", "positions"])
def test_unpadded_models_call_a_forward_replaced_on_a_class(part, replaced):
    stock = tiny_model("wav2vec2-layer").eval()
    ours = replace_attention(copy.deepcopy(stock), unpad=True)
    found = parts(stock)[part]
    replaced(type(found))
    _, values, mask = a_batch()
    with torch.no_grad():
        expected, got = (model(values, attention_mask=mask).last_hidden_state for model in (stock, ours))
    for row, count in enumerate(stock._get_feat_extract_output_lengths(mask.sum(-1)).tolist()):
        torch.testing.assert_close(got[row, :count], expected[row, :count], rtol=1e-4, atol=1e-4)


def test_a_forward_replaced_on_stocks_attention_is_refused_with_the_way_out(encoder, replaced):
    ours = encoder.model
    replaced(stock_class(ours.encoder.layers[0].attention))
    (wave,) = noise(0.4)
    with pytest.raises(ValueError, match=r"was replaced by one of .*restore_attention"):
        ours(wave[None])
    with pytest.raises(ValueError, match="was replaced by one of"):
        encoder.extract([wave])
    with pytest.raises(ValueError, match="found one of"):
        replace_attention(tiny_model("wav2vec2-layer"))


def test_an_implementation_of_attention_that_somebody_registered_is_refused(encoder, monkeypatch):
    def doubled(module, query, key, value, attention_mask, **options):
        output, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)
        return 2 * output, weights

    (wave,) = noise(0.4)
    before = encoder.extract([wave])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "doubled", doubled)
    encoder.model.config._attn_implementation = "doubled"
    for call in (lambda: encoder.extract([wave]), lambda: encoder.model(wave[None])):
        with pytest.raises(ValueError, match='"doubled", which is not of transformers'):
            call()
    encoder.model.config._attn_implementation = "sdpa"
    assert torch.equal(encoder.extract([wave])[0]["final"], before[0]["final"])


# -------------------------------------------------------------------------------------------------- activations

ACTIVATIONS = {
    "gelu_10": lambda: activations.ClippedGELUActivation(-10, 10),
    "quick_gelu": activations.QuickGELUActivation,
    "gelu_new": activations.NewGELUActivation,
    "tanh": lambda: nn.GELU(approximate="tanh"),
    "PReLU": nn.PReLU,
    "Softplus": nn.Softplus,
    "exact, by Python": lambda: activations.GELUActivation(use_gelu_python=True),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("where", ["feed-forward", "convolutions"])
def test_relatives_of_gelu_are_not_taken_for_it(name, where, encoder):
    if where == "feed-forward":
        for block in encoder.model.encoder.layers:
            block.feed_forward.intermediate_act_fn = ACTIVATIONS[name]()
            block.feed_forward.intermediate_dense.weight.data.mul_(20)
    else:
        for layer in encoder.model.feature_extractor.conv_layers:
            layer.activation = ACTIVATIONS[name]()
    is_stocks(encoder)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_unpadded_feed_forwards_know_the_relatives_of_gelu(name):
    stock = tiny_model("wav2vec2-layer").eval()
    for block in stock.encoder.layers:
        block.feed_forward.intermediate_act_fn = ACTIVATIONS[name]()
        block.feed_forward.intermediate_dense.weight.data.mul_(20)
    ours = replace_attention(copy.deepcopy(stock), unpad=True)
    (wave,) = noise(0.4)
    torch.testing.assert_close(
        ours(wave[None]).last_hidden_state, stock(wave[None]).last_hidden_state, rtol=1e-4, atol=1e-4
    )


def test_an_activation_for_each_channel_is_called_as_stock_calls_it(encoder):
    for layer in encoder.model.feature_extractor.conv_layers:
        layer.activation = nn.PReLU(layer.conv.out_channels)
        with torch.no_grad():
            layer.activation.weight.uniform_()
    is_stocks(encoder)


def test_an_activation_in_bfloat16_is_called(tmp_path):
    encoder = load_encoder(save(tiny_model("wav2vec2-layer"), tmp_path / "model"), dtype="bfloat16")
    encoder.model.encoder.layers[0].feed_forward.intermediate_act_fn = nn.PReLU().to(torch.bfloat16)
    assert encoder.extract(noise(0.4))[0]["final"].isfinite().all()


# ------------------------------------------------------------------------------------- blocks and what is in them


class Neighbours(nn.Module):
    """A feed-forward that looks at the frames beside each."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """A block of somebody's own, with a convolution, around one of stock's."""

    def __init__(self, inner, width):
        super().__init__()
        self.inner, self.conv = inner, Neighbours(width)

    def forward(self, x, attention_mask=None, **kwargs):
        output = self.inner(x, attention_mask=attention_mask, **kwargs)
        return output + self.conv(output) if isinstance(output, torch.Tensor) else (output[0] + self.conv(output[0]),)


def with_neighbours(model):
    model.encoder.layers[0].feed_forward = Neighbours(model.config.hidden_size)


def with_a_block(model):
    model.encoder.layers[0] = Block(model.encoder.layers[0], model.config.hidden_size)


def with_a_stock_block(model):
    model.encoder.layers.append(copy.deepcopy(tiny_model("wav2vec2-layer").encoder.layers[0]))


def with_a_norm(model):
    model.encoder.layers[0].final_layer_norm = nn.Sequential(
        model.encoder.layers[0].final_layer_norm, Neighbours(model.config.hidden_size)
    )


@pytest.mark.parametrize("change", [with_neighbours, with_a_block, with_a_stock_block, with_a_norm])
def test_parts_that_look_at_neighbouring_frames_never_see_another_recording(change):
    stock = tiny_model("wav2vec2-layer").eval()
    ours = replace_attention(copy.deepcopy(stock), unpad=True)
    for model in (stock, ours):
        torch.manual_seed(3)
        change(model)
    _, values, mask = a_batch()
    with torch.no_grad():
        expected, got = (model(values, attention_mask=mask).last_hidden_state for model in (stock, ours))
    for row, count in enumerate(stock._get_feat_extract_output_lengths(mask.sum(-1)).tolist()):
        torch.testing.assert_close(got[row, :count], expected[row, :count], rtol=1e-4, atol=1e-4)


def test_one_block_in_two_places_gives_two_layers(encoder):
    layers, (wave,) = encoder.model.encoder.layers, noise(0.4)
    layers.append(layers[0])
    names = [f"layer_{number:02d}" for number in range(1, len(layers) + 1)]
    (packed,) = encoder.extract([wave], ["embed", *names])
    layers[0].attention.q_proj.register_forward_hook(lambda *_: None)  # so that the model itself is called
    assert encoder.unpacked_reason is not None
    (called,) = encoder.extract([wave], ["embed", *names])
    for name in packed:
        torch.testing.assert_close(called[name], packed[name], rtol=1e-4, atol=1e-4)


def test_an_encoder_without_blocks_is_stocks(encoder):
    del encoder.model.encoder.layers[:]
    (wave,) = noise(0.4)
    expected = stock_of(encoder.model)(encoder.prepare(wave)[None]).last_hidden_state[0]
    torch.testing.assert_close(encoder.extract([wave])[0]["final"], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no blocks"):
        encoder.extract([wave], ["embed"])


@pytest.mark.parametrize("missing", ["q_proj", "k_proj", "v_proj", "out_proj"])
def test_a_bias_may_be_missing_from_one_projection_alone(missing, encoder):
    for block in encoder.model.encoder.layers:
        getattr(block.attention, missing).bias = None
    is_stocks(encoder)


@pytest.mark.parametrize("family", ["wav2vec2-group", "hubert-group"])
def test_a_group_norm_without_weights_is_computed(family, tmp_path):
    if family not in FAMILIES:
        pytest.skip("there is no such family")
    encoder = load_encoder(save(tiny_model(family), tmp_path / "model"))
    layer = encoder.model.feature_extractor.conv_layers[0]
    layer.layer_norm = nn.GroupNorm(layer.conv.out_channels, layer.conv.out_channels, affine=False)
    is_stocks(encoder)


# ------------------------------------------------------------------------------------------- attention of one block


def test_heads_that_do_not_fit_the_projections_are_refused(encoder):
    encoder.model.encoder.layers[0].attention.num_heads *= 2
    for call in (lambda: encoder.extract(noise(0.4)), lambda: encoder.model(noise(0.4)[0][None])):
        with pytest.raises(ValueError, match=r"are not \d+ heads of \d+"):
            call()


def test_a_causal_block_is_refused_in_extraction_too(encoder):
    encoder.model.encoder.layers[1].attention.is_causal = True
    with pytest.raises(ValueError, match="is_causal"):
        encoder.extract(noise(0.4))


def test_a_scale_that_would_learn_is_refused(encoder):
    with pytest.raises(ValueError, match="scale must be a number"):
        MultiHeadSelfAttention(8, 2, scale=nn.Parameter(torch.tensor(0.5)))
    layer = MultiHeadSelfAttention(8, 2)
    layer.scale = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="scale must be a number"):
        layer(torch.randn(1, 5, 8))
    encoder.model.encoder.layers[0].attention.scaling = nn.Parameter(torch.tensor(0.5))
    with pytest.raises(ValueError, match="a number for a scale"):
        encoder.model(noise(0.4)[0][None])


def test_a_learnable_mask_that_begins_at_zero_gets_its_gradient():
    block = replace_attention(tiny_model("wav2vec2-layer")).encoder.layers[0].attention
    mask = torch.zeros(1, 1, 9, 9, requires_grad=True)
    y, _ = block(torch.randn(2, 9, block.input_size), attention_mask=mask)
    y.square().sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().max() > 0


@pytest.mark.parametrize("warm", [False, True])
def test_tracing_is_refused(warm):
    model = replace_attention(tiny_model("wav2vec2-layer")).eval().requires_grad_(False)
    model.config.return_dict = False
    _, values, mask = a_batch()
    if warm:
        model(values, attention_mask=mask)
    with pytest.raises(RuntimeError, match=r"torch.jit.trace.*restore_attention"):
        torch.jit.trace(model, (values, mask), check_trace=False)


@pytest.mark.parametrize("change", ["LoRA", "hook"])
def test_relative_positions_of_wav2vec2_bert_are_those_of_their_module(change):
    stock = tiny_bert("relative_key").eval()
    ours = replace_attention(copy.deepcopy(stock))
    for model in (stock, ours):
        for module in [m for name, m in model.named_modules() if name.endswith("distance_embedding")]:
            if change == "hook":
                module.register_forward_hook(lambda _, __, y: 3 * y)
        if change == "LoRA":
            from peft import LoraConfig, inject_adapter_in_model

            torch.manual_seed(2)
            options = {"r": 2, "lora_alpha": 64, "init_lora_weights": False}
            inject_adapter_in_model(LoraConfig(target_modules=["distance_embedding"], **options), model)
    x = torch.randn(2, 31, stock.config.feature_projection_input_dim, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x).last_hidden_state, stock(x).last_hidden_state, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------- what extraction holds on to


def test_extraction_follows_tensors_that_are_plain_attributes(encoder):
    dense = encoder.model.encoder.layers[0].feed_forward.intermediate_dense
    weight = dense.weight.detach().clone()
    del dense.weight
    dense.weight = weight
    is_stocks(encoder)
    weight.mul_(1.5)
    is_stocks(encoder)


def test_weights_that_parametrize_holds_in_its_cache_are_forgotten_with_it(encoder):
    dense = encoder.model.encoder.layers[0].feed_forward.intermediate_dense
    positions = encoder.model.encoder.pos_conv_embed.conv
    assert parametrize.is_parametrized(positions)
    assert not parametrize.is_parametrized(dense)
    for _ in range(2):
        with parametrize.cached():
            is_cached = encoder.extract(noise(0.4))[0]["final"]
            with torch.no_grad():
                positions.parametrizations.weight.original0.mul_(1.7)
            assert torch.equal(encoder.extract(noise(0.4))[0]["final"], is_cached)
        is_stocks(encoder)


def test_threads_that_extract_from_a_model_in_training_mode_do_not_disturb_each_other(encoder):
    encoder.model.encoder.layers[0].attention.q_proj.register_forward_hook(lambda *_: None)  # calls the model itself
    encoder.model.config.mask_time_prob = 0.9
    for module in encoder.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    (wave,) = noise(0.4)
    names = ("embed", "layer_02", "final")
    expected = encoder.extract([wave], layers=names)[0]
    encoder.model.train()
    wrong, done = [], []

    def work():
        for _ in range(10):
            found = encoder.extract([wave], layers=names)[0]
            wrong.extend(n for n in names if not torch.allclose(found[n], expected[n], rtol=1e-4, atol=1e-4))
        done.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(done) == len(threads)
    assert all(module.training for module in encoder.model.modules())


def test_a_model_that_was_replaced_is_not_kept(encoder):
    encoder.extract(noise(0.4))
    old = weakref.ref(encoder.model)
    encoder.model = replace_attention(tiny_model("wav2vec2-layer"))
    gc.collect()
    assert old() is None


def test_copies_of_an_encoder_and_its_model_stay_a_pair(encoder):
    encoder.extract(noise(0.4))
    other, model = copy.deepcopy([encoder, encoder.model])
    assert isinstance(other, Encoder)
    assert other.model is model
    assert other.checkpoint.model is model
    assert other.model is not encoder.model
    is_stocks(other)


def test_the_model_may_return_tuples_by_default(encoder):
    encoder.model.config.return_dict = False
    expected = encoder.extract(noise(0.4))[0]["final"]
    encoder.model.encoder.layers[0].attention.q_proj.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(encoder.extract(noise(0.4))[0]["final"], expected, rtol=1e-4, atol=1e-4)


def test_models_that_accelerate_offloads_are_extracted_from(encoder):
    from accelerate import cpu_offload

    expected = encoder.extract(noise(0.4))[0]["final"]
    cpu_offload(encoder.model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(encoder.extract(noise(0.4))[0]["final"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unpad", [False, True])
def test_another_default_device_changes_nothing(unpad, encoder):
    model = replace_attention(tiny_model("wav2vec2-layer"), unpad=unpad).eval()
    _, values, mask = a_batch()
    (wave,) = noise(0.4)
    with torch.no_grad():
        expected, features = model(values, attention_mask=mask).last_hidden_state, encoder.extract([wave])[0]["final"]
        fresh = copy.deepcopy(encoder)
        torch.set_default_device("meta")
        try:
            block = model.encoder.layers[0].attention
            x = torch.ones(2, 9, block.input_size, device="cpu")
            real = torch.ones(2, 9, dtype=torch.bool, device="cpu")
            block(x, attention_mask=real)
            found = fresh.extract([wave])[0]["final"]
        finally:
            torch.set_default_device("cpu")
    assert torch.equal(found, features)
    assert expected.isfinite().all()


@pytest.mark.parametrize("how", ["added", "scaled"])
def test_adapters_see_no_padding_when_a_hook_replaced_the_encoders_output(how):
    changes = {"add_adapter": True, "num_adapter_layers": 2}
    stock = tiny_model("wav2vec2-layer", **changes).eval()
    ours = replace_attention(copy.deepcopy(stock), unpad=True)

    def hook(_, __, output):
        output.last_hidden_state = output.last_hidden_state * 2 if how == "scaled" else output.last_hidden_state + 1

    for model in (stock, ours):
        model.encoder.register_forward_hook(hook)
    waves, values, mask = a_batch((30_000, 17_000, 9000))
    lengths = stock._get_feat_extract_output_lengths(mask.sum(-1), add_adapter=True).tolist()
    with torch.no_grad():
        found = ours(values, attention_mask=mask).last_hidden_state
        for one, wave, n in zip(found, waves, lengths, strict=True):
            torch.testing.assert_close(one[:n], stock(wave[None]).last_hidden_state[0], rtol=1e-4, atol=1e-4)


def test_weight_norms_of_an_unpickled_encoder_are_in_evaluation_mode(encoder):
    import pickle

    other = pickle.loads(pickle.dumps(encoder))
    assert not any(module.training for module in other.model.modules())
    assert isinstance(other.model.encoder.pos_conv_embed.conv.parametrizations.weight[0], parametrizations._WeightNorm)


def test_restored_models_have_all_their_classes_again():
    model = replace_attention(tiny_model("wav2vec2-layer"), unpad=True)
    with_neighbours(model)
    restore_attention(model)
    assert not any(type(module).__module__.startswith("w2v_attn.") for module in model.modules())
