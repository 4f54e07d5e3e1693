"""The ladder: stock against ours on the same weights, stage by stage, forward and every parameter's gradient."""

import copy

import pytest
import torch
from conftest import tiny_model

from w2v_attn import replace_attention

FLOAT32, FLOAT64 = 1e-4, 1e-10


def stages(model):
    """Name -> module whose output is a stage, in the order in which they run."""
    base = getattr(model, model.base_model_prefix, model)
    found = {f"conv {n}": layer for n, layer in enumerate(base.feature_extractor.conv_layers)}
    found |= {"projection": base.feature_projection, "positions": base.encoder.pos_conv_embed}
    found |= {f"attention {n}": layer.attention for n, layer in enumerate(base.encoder.layers)}
    found |= {f"block {n}": layer for n, layer in enumerate(base.encoder.layers)}
    return found | {"encoder": base.encoder}


def climb(model, values, attention_mask):
    """(stage -> output, gradient of every parameter, attended frames) of one training step without dropout."""
    found, hooks = {}, []
    for name, module in stages(model).items():

        def keep(_, __, output, name=name):
            if hasattr(output, "last_hidden_state"):
                output = output.last_hidden_state
            found[name] = output[0] if isinstance(output, tuple) else output

        hooks.append(module.register_forward_hook(keep))
    logits = model(values, attention_mask=attention_mask).logits
    for hook in hooks:
        hook.remove()
    found["logits"] = logits
    real = torch.ones(logits.shape[:2], dtype=torch.bool)
    if attention_mask is not None:
        frames = model._get_feat_extract_output_lengths(attention_mask.sum(1))
        real = torch.arange(logits.shape[1]) < frames[:, None]
    torch.manual_seed(0)
    weights = torch.randn_like(logits)
    (logits * weights * real[..., None]).sum().backward()
    return found, {name: p.grad for name, p in model.named_parameters()}, real


def batch(speech, padded):
    if not padded:
        return speech[0][None], None
    values = torch.nn.utils.rnn.pad_sequence(list(speech), batch_first=True)
    mask = (torch.arange(values.shape[1]) < torch.tensor([len(wave) for wave in speech])[:, None]).long()
    return values, mask


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ["explicit", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_stage_and_every_gradient_is_stocks(norm_style, backend, dtype, padded, speech):
    values, mask = batch(speech, padded)
    bound = FLOAT32 if dtype == torch.float32 else FLOAT64
    theirs = tiny_model(norm_style, "ForCTC").to(dtype)
    ours = replace_attention(copy.deepcopy(theirs), backend=backend)
    their_stages, their_gradients, real = climb(theirs, values.to(dtype), mask)
    our_stages, our_gradients, _ = climb(ours, values.to(dtype), mask)
    assert list(our_stages) == list(their_stages)
    for name, their in their_stages.items():
        our = our_stages[name]
        if padded and their.shape[:2] == real.shape:
            our, their = our[real], their[real]
        torch.testing.assert_close(our, their, rtol=0, atol=bound, msg=lambda m, n=name: f"{n}: {m}")
    for name, their in their_gradients.items():
        our = our_gradients[name]
        assert (our is None) == (their is None), name
        if their is not None:
            scale = max(1.0, their.abs().max().item())
            torch.testing.assert_close(our, their, rtol=0, atol=bound * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", ["explicit", "fused"])
def test_in_float32_we_are_as_near_to_the_truth_as_stock(norm_style, backend, speech):
    model = tiny_model(norm_style, "ForCTC")
    exact, _, _ = climb(copy.deepcopy(model).double(), speech[0][None].double(), None)
    theirs, _, _ = climb(copy.deepcopy(model), speech[0][None], None)
    ours, _, _ = climb(replace_attention(model, backend=backend), speech[0][None], None)
    for name in exact:
        our, their = ((stage[name] - exact[name]).abs().max().item() for stage in (ours, theirs))
        assert our <= max(2 * their, 1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_configurations_agree(size, speech):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    large = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    large |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    torch.manual_seed(0)
    # Three of the blocks: the others are the same code, and a machine with little memory runs this too.
    model = Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=3, **(large if size == "large" else {}))).eval()
    with torch.no_grad():
        theirs = model(speech[0][None]).last_hidden_state
        ours = replace_attention(model)(speech[0][None]).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT32)
