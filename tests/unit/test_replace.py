"""The swap: stock models with our attention keep everything they could do, and compute the same."""

import copy
import pickle

import pytest
import torch
from conftest import FAMILIES, tiny_model

from w2v_attn import MultiHeadSelfAttention, replace_attention, restore_attention
from w2v_attn.patching.replace import backend_in_use

HEADS = {
    "Wav2Vec2": ["ForCTC", "ForSequenceClassification", "ForPreTraining", "ForXVector", "ForAudioFrameClassification"],
    "Hubert": ["ForCTC", "ForSequenceClassification"],
    "Data2VecAudio": ["ForCTC", "ForSequenceClassification", "ForXVector", "ForAudioFrameClassification"],
    "UniSpeech": ["ForCTC", "ForSequenceClassification", "ForPreTraining"],
    "UniSpeechSat": [
        "ForCTC",
        "ForSequenceClassification",
        "ForPreTraining",
        "ForXVector",
        "ForAudioFrameClassification",
    ],
    "WavLM": ["ForCTC", "ForSequenceClassification", "ForXVector", "ForAudioFrameClassification"],
    "SEW": ["ForCTC", "ForSequenceClassification"],
    "Wav2Vec2Conformer": [
        "ForCTC",
        "ForSequenceClassification",
        "ForPreTraining",
        "ForXVector",
        "ForAudioFrameClassification",
    ],
}
MODELS = [(family, head) for family, (prefix, _) in FAMILIES.items() for head in ["Model", *HEADS[prefix]]]


def blocks(model):
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def waves(batch=2, samples=8000):
    torch.manual_seed(3)
    return torch.randn(batch, samples)


def padded():
    mask = torch.ones(2, 8000, dtype=torch.long)
    mask[1, 6500:] = 0
    return mask


def outputs(model, **inputs):
    found = model(waves(), **inputs)
    return [value for value in found.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point()]


@pytest.mark.parametrize(("family", "head"), MODELS)
@pytest.mark.parametrize("padding", [False, True])
def test_every_model_and_head_computes_the_same(family, head, padding):
    model = tiny_model(family, head)
    inputs = {"attention_mask": padded()} if padding else {}
    if "PreTraining" in head:
        torch.manual_seed(0)  # its quantiser draws
    with torch.no_grad():
        torch.manual_seed(1)
        theirs = outputs(model, **inputs)
        torch.manual_seed(1)
        ours = outputs(replace_attention(model), **inputs)
    assert len(ours) == len(theirs) > 0
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_replacing_keeps_objects_parameters_and_keys(family):
    model = tiny_model(family, "ForCTC")
    before, keys = {k: id(p) for k, p in model.named_parameters()}, list(model.state_dict())
    attention = blocks(model)
    assert replace_attention(model) is model
    assert blocks(model) == attention
    assert all(isinstance(block, MultiHeadSelfAttention) for block in attention)
    assert {k: id(p) for k, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    assert restore_attention(model) is model
    assert not any(isinstance(block, MultiHeadSelfAttention) for block in attention)
    assert all("backend" not in vars(block) for block in attention)


def test_state_dicts_load_strictly_both_ways(family):
    ours, theirs = replace_attention(tiny_model(family, seed=1)), tiny_model(family, seed=2)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attentions_and_hidden_states_are_recorded(norm_style, attention):
    theirs = tiny_model(norm_style, attention="eager")
    ours = replace_attention(tiny_model(norm_style, attention=attention))
    asked = {"output_attentions": True, "output_hidden_states": True, "attention_mask": padded()}
    with torch.no_grad():
        for _ in range(2):  # the hooks that record are installed by the first call
            our, their = ours(waves(), **asked), theirs(waves(), **asked)
            assert len(our.attentions) == len(their.attentions) == 3
            assert len(our.hidden_states) == len(their.hidden_states)
            for a, b in zip(
                (*our.attentions, *our.hidden_states), (*their.attentions, *their.hidden_states), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert ours(waves()).attentions is None


def test_hooks_that_stock_installed_before_the_swap_still_record(norm_style):
    model = tiny_model(norm_style, attention="eager")
    with torch.no_grad():
        their = model(waves(), output_attentions=True)
        our = replace_attention(model)(waves(), output_attentions=True)
        assert len(our.attentions) == 3
        again = restore_attention(model)(waves(), output_attentions=True)
    for a, b, c in zip(our.attentions, their.attentions, again.attentions, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert torch.equal(b, c)


def test_attentions_asked_for_in_the_config(norm_style):
    model = replace_attention(tiny_model(norm_style, attention="eager"))
    model.config.output_attentions = True
    with torch.no_grad():
        assert len(model(waves()).attentions) == 3


def ctc_loss(model, **options):
    labels = torch.tensor([[1, 2, 3], [4, 5, -100]])
    return model(waves(), attention_mask=padded(), labels=labels, **options).loss


@pytest.mark.parametrize("backend", ["auto", "tiled", "sdpa"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_parameters_gradient_is_stocks(norm_style, backend, attention):
    changes = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    changes |= {"final_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0, "ctc_loss_reduction": "mean"}
    theirs = tiny_model(norm_style, "ForCTC", attention=attention, **changes).train()
    ours = replace_attention(copy.deepcopy(theirs), backend=backend)
    ctc_loss(theirs).backward()
    ctc_loss(ours).backward()
    for (name, our), (_, their) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (our.grad is None) == (their.grad is None), name
        if our.grad is not None:
            scale = their.grad.abs().max().item()
            torch.testing.assert_close(
                our.grad, their.grad, rtol=0, atol=1e-4 * scale + 1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_gradient_checkpointing_gives_the_same_gradients_with_dropout(norm_style):
    model = replace_attention(tiny_model(norm_style, "ForCTC", attention_dropout=0.2, layerdrop=0.0)).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        import numpy as np

        np.random.seed(0)  # SpecAugment draws from numpy
        ctc_loss(model).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_training_with_dropout_and_layerdrop_runs_and_learns(norm_style):
    model = tiny_model(norm_style, "ForCTC", layerdrop=0.3, attention_dropout=0.1, ctc_loss_reduction="mean")
    replace_attention(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        loss = ctc_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_autocast_works_as_in_stock(norm_style):
    model = tiny_model(norm_style)
    with torch.no_grad():
        exact = model(waves()).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            theirs = model(waves()).last_hidden_state
            ours = replace_attention(model)(waves()).last_hidden_state
    assert ours.dtype == theirs.dtype
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_stock(norm_style, dtype):
    model = tiny_model(norm_style)
    with torch.no_grad():
        exact = model(waves()).last_hidden_state
        half = copy.deepcopy(model).to(dtype)
        theirs = half(waves().to(dtype)).last_hidden_state
        ours = replace_attention(half)(waves().to(dtype)).last_hidden_state
    assert ours.dtype == dtype
    assert (ours.float() - exact).norm() <= 1.1 * (theirs.float() - exact).norm()


def test_deepcopies_and_pickles_keep_our_attention(family):
    model = replace_attention(tiny_model(family), backend="tiled")
    twin = copy.deepcopy(model)
    assert all(block.backend == "tiled" for block in blocks(twin))
    with torch.no_grad():
        assert torch.equal(model(waves()).last_hidden_state, twin(waves()).last_hidden_state)
    layer = model.encoder.layers[0]  # stock's weight norm cannot be pickled; all that is around our attention can
    again = pickle.loads(pickle.dumps(layer))
    assert [type(module) for module in again.modules()] == [type(module) for module in layer.modules()]
    calls = []
    with torch.no_grad(), layer.register_forward_hook(lambda *call: calls.append(call[1:]), with_kwargs=True):
        model(waves())
        (inputs, named, theirs), *_ = calls
        ours = again(*inputs, **named)
    assert torch.equal(*(x if isinstance(x, torch.Tensor) else x[0] for x in (ours, theirs)))


def test_save_and_load_need_nothing_of_ours(norm_style, tmp_path):
    import transformers

    model = replace_attention(tiny_model(norm_style, "ForCTC"))
    model.save_pretrained(tmp_path)
    stock = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert not any(isinstance(block, MultiHeadSelfAttention) for block in blocks(stock))
    with torch.no_grad():
        torch.testing.assert_close(stock(waves()).logits, model(waves()).logits, rtol=0, atol=1e-5)
    assert stock.config.architectures == ["Wav2Vec2ForCTC"]


def test_replacing_again_changes_the_backend():
    model = replace_attention(tiny_model("wav2vec2-group"), backend="tiled")
    assert backend_in_use(model) == "tiled"
    assert backend_in_use(replace_attention(model, backend="auto")) == "sdpa"


def test_a_part_of_a_model_can_be_replaced():
    model = tiny_model("wav2vec2-group")
    replace_attention(model.encoder.layers[1])
    assert [isinstance(block, MultiHeadSelfAttention) for block in blocks(model)] == [False, True, False]


def test_nothing_to_replace_names_the_supported_families():
    with pytest.raises(ValueError, match="wav2vec2, hubert, data2vec-audio, unispeech, unispeech-sat, wavlm"):
        replace_attention(torch.nn.Linear(2, 2))


def test_sew_d_is_refused_with_the_reason():
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    model = transformers.SEWDModel(
        transformers.SEWDConfig(**sizes, conv_dim=(8,) * 13, num_conv_pos_embedding_groups=2)
    )
    with pytest.raises(ValueError, match="disentangled attention"):
        replace_attention(model)


def test_a_class_that_somebody_derived_is_left_alone():
    model = tiny_model("wav2vec2-group")
    stock = type(model.encoder.layers[0].attention)

    class Mine(stock):
        pass

    model.encoder.layers[0].attention.__class__ = Mine
    replace_attention(model)
    assert type(model.encoder.layers[0].attention) is Mine
    assert isinstance(model.encoder.layers[1].attention, MultiHeadSelfAttention)
    restore_attention(model)
    assert type(model.encoder.layers[0].attention) is Mine
    assert type(model.encoder.layers[1].attention) is stock


def test_a_mask_that_is_no_tensor_names_the_implementations_that_work():
    block = replace_attention(tiny_model("wav2vec2-group")).encoder.layers[0].attention
    with pytest.raises(ValueError, match="sdpa"):
        block(torch.randn(1, 3, 24), attention_mask=object())


def test_lora_finds_its_targets_and_only_they_learn(norm_style):
    peft = pytest.importorskip("peft")
    model = replace_attention(tiny_model(norm_style, "ForCTC", ctc_loss_reduction="mean", mask_time_prob=0.0))
    with torch.no_grad():
        before = model(waves()).logits
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        torch.testing.assert_close(tuned(waves()).logits, before, rtol=0, atol=1e-5)
    tuned.train()
    ctc_loss(tuned).backward()
    learning = {name for name, p in tuned.named_parameters() if p.grad is not None}
    assert len(learning) == 2 * 2 * 3
    assert all("lora_" in name for name in learning)
    assert all(isinstance(block, MultiHeadSelfAttention) for block in blocks(tuned))


def test_an_unknown_backend_and_cross_attention_are_refused():
    model = tiny_model("wav2vec2-group")
    with pytest.raises(ValueError, match="auto, tiled, sdpa"):
        replace_attention(model, backend="fast")
    block = replace_attention(model).encoder.layers[0].attention
    with pytest.raises(ValueError, match="self-attention"):
        block(torch.randn(1, 3, 24), key_value_states=torch.randn(1, 4, 24))


@pytest.mark.parametrize("family", ["wav2vec2-group", "wavlm-layer", "conformer-relative"])
def test_gradients_stay_on_recorded_attentions_and_hidden_states_that_retain_them(family):
    model = replace_attention(tiny_model(family, attention="eager"))
    found = model(waves(), output_attentions=True, output_hidden_states=True)
    recorded = [found.attentions[0], found.hidden_states[1]]
    for tensor in recorded:
        tensor.retain_grad()
    found.last_hidden_state.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in recorded)


@pytest.mark.parametrize("family", ["wav2vec2-layer", "wavlm-group", "wavlm-layer", "conformer-rotary"])
def test_a_config_that_asks_for_attentions_gets_them(family):
    model = replace_attention(tiny_model(family, attention="eager"))
    model.config.output_attentions = True
    with torch.no_grad():
        assert len(model(waves()).attentions) == 3
