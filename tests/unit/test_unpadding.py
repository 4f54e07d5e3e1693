"""Encoders without padding: what stock's give on the same weights, and everything around them unaware of it."""

import copy
import pickle

import pytest
import torch
from conftest import ALL_FAMILIES, CONFORMERS, FAMILIES, encoder_of, run, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from w2v_attn import replace_attention, restore_attention
from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.attention.masks import AttentionMask
from w2v_attn.ops import gemm
from w2v_attn.ops.feed_forward import FeedForward, feed_forward
from w2v_attn.ops.fourier import FourierConvolution
from w2v_attn.patching.unpad import FusedFeedForward, UnpaddedEncoder

UNPADDED = [family for family in FAMILIES if family not in CONFORMERS]
# Stock lets padding leak between its stacked positional convolutions, and into squeezed frames.
EQUAL = [family for family in ALL_FAMILIES if family not in CONFORMERS and family not in ("data2vec-audio", "sew")]


def a_batch(samples=(6000, 4100, 2111), seed=0):
    generator = torch.Generator().manual_seed(seed)
    values, mask = torch.zeros(len(samples), max(samples)), torch.zeros(len(samples), max(samples)).long()
    for row, count in enumerate(samples):
        values[row, :count] = torch.randn(count, generator=generator)
        mask[row, :count] = 1
    labels = torch.randint(1, 10, (len(samples), 2), generator=generator)
    return {"input_values": values, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = run(model, batch["input_values"], batch["attention_mask"], labels=batch["labels"]).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", EQUAL)
def test_loss_and_every_gradient_are_stocks(family):
    theirs = tiny_model(family, "ForCTC", mask_time_prob=0.0, layerdrop=0.0)
    ours = replace_attention(copy.deepcopy(theirs), unpad=True)
    assert isinstance(encoder_of(ours), UnpaddedEncoder)
    assert sum(isinstance(module, FusedFeedForward) for module in ours.modules()) == 3
    their_loss, their_gradients = loss_and_gradients(theirs, a_batch())
    our_loss, our_gradients = loss_and_gradients(ours, a_batch())
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-6, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", UNPADDED)
def test_recordings_of_a_padded_batch_are_what_they_are_alone(family):
    """With the frames that stock's frontend gives: its group norm over padding is not the encoder's business."""
    model = replace_attention(tiny_model(family), unpad=True)
    hidden = torch.randn(3, 29, 24)
    mask = torch.arange(29) < torch.tensor([29, 17, 5])[:, None]
    with torch.no_grad():
        batched = model.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
        for row, count in enumerate(mask.sum(-1).tolist()):
            alone = restore_attention(copy.deepcopy(model)).encoder(hidden[row : row + 1, :count].clone())
            torch.testing.assert_close(batched[row, :count], alone.last_hidden_state[0], rtol=0, atol=1e-5)
            assert (batched[row, count:] == 0).all()


def test_layers_are_dropped_where_stock_drops_them():
    theirs = tiny_model("wav2vec2-group", "ForCTC", layerdrop=0.5, mask_time_prob=0.0, **NO_DROPOUT).train()
    ours = replace_attention(copy.deepcopy(theirs), unpad=True)
    for seed in range(4):
        losses = []
        for model in (theirs, ours):
            torch.manual_seed(seed)
            losses.append(model(**a_batch()).loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-5)


NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout"), 0.0
)


def test_hidden_states_and_attentions_come_in_the_shape_of_the_batch(norm_style):
    theirs = tiny_model(norm_style, attention="eager")
    ours = replace_attention(copy.deepcopy(theirs), unpad=True)
    batch = {key: value for key, value in a_batch().items() if key != "labels"}
    with torch.no_grad():
        expected, found = (m(**batch, output_hidden_states=True, output_attentions=True) for m in (theirs, ours))
    for mine, their in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert mine.shape == their.shape
    assert [a.shape for a in found.attentions] == [a.shape for a in expected.attentions]


def test_masks_with_real_frames_after_padding_go_through_stock(norm_style):
    theirs = tiny_model(norm_style)
    ours = replace_attention(copy.deepcopy(theirs), unpad=True)
    hidden, mask = torch.randn(2, 19, 24), torch.ones(2, 19, dtype=torch.bool)
    mask[0, :4] = False
    with torch.no_grad():
        expected = theirs.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
        found = ours.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)


def test_checkpointed_activations_give_the_same_gradients_with_dropout(norm_style):
    model = replace_attention(tiny_model(norm_style, "ForCTC", mask_time_prob=0.0, layerdrop=0.0), unpad=True).train()
    model.freeze_feature_encoder()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(3)
        gradients.append(loss_and_gradients(model, a_batch())[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_lora_learns_inside_unpadded_encoders(norm_style):
    from peft import LoraConfig, get_peft_model

    theirs = tiny_model(norm_style, "ForCTC", mask_time_prob=0.0, layerdrop=0.0)
    options = LoraConfig(r=2, target_modules=["q_proj", "output_dense"], init_lora_weights=False)
    losses = []
    for unpad in (False, True):
        model = copy.deepcopy(theirs)
        if unpad:
            replace_attention(model, unpad=True)
        torch.manual_seed(0)
        losses.append(loss_and_gradients(get_peft_model(model, options), a_batch()))
    torch.testing.assert_close(losses[1][0], losses[0][0], rtol=1e-6, atol=1e-5)
    for name, gradient in losses[0][1].items():
        torch.testing.assert_close(losses[1][1][name], gradient, rtol=1e-3, atol=1e-4)


def test_restored_is_stock_and_pickles_come_back_unpadded(norm_style):
    model = replace_attention(tiny_model(norm_style), unpad=True)
    block = model.encoder.layers[0].feed_forward
    again = pickle.loads(pickle.dumps(block))
    assert type(again) is type(block)
    keys = list(model.state_dict())
    restore_attention(model)
    assert type(model.encoder).__module__.startswith("transformers.")
    assert type(block).__module__.startswith("transformers.")
    assert list(model.state_dict()) == keys


def test_a_model_without_memory_is_unpadded_too(norm_style):
    with torch.device("meta"):
        model = replace_attention(tiny_model(norm_style), unpad=True)
    assert isinstance(model.encoder, UnpaddedEncoder)
    assert model.encoder.layers[0].feed_forward.output_dense.weight.is_meta


@pytest.mark.parametrize("lengths", [(1, 4, 2), (5, 3, 3), (7, 1, 1)])
@pytest.mark.parametrize("factor", [2, 3])
def test_recordings_that_are_shorter_than_a_squeezed_frame_are_what_they_are_alone(lengths, factor):
    stock = tiny_model("sew", squeeze_factor=factor)
    model, hidden = replace_attention(copy.deepcopy(stock), unpad=True), torch.randn(len(lengths), max(lengths), 24)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        batched = model.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
        for row, count in enumerate(lengths):
            if count >= factor:  # stock's norm of no frames at all is not defined everywhere
                alone = stock.encoder(hidden[row : row + 1, :count].clone()).last_hidden_state[0]
                torch.testing.assert_close(batched[row, :count], alone, rtol=0, atol=1e-5)
            assert not batched[row, count:].any()


# ---------------------------------------------------------------------------- attention over packed frames


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "auto", "triton"])
def test_side_by_side_attention_is_that_of_each_recording(backend):
    if backend == "triton":
        pytest.importorskip("triton")
    lengths = (7, 1, 13, 600) if backend == "auto" else (7, 1, 13)
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(15, 3, backend=backend)
    x = torch.randn(1, sum(lengths), 15, requires_grad=True)
    y, _ = layer.attend(x, AttentionMask(lengths=lengths), return_weights=False)
    weights = torch.randn_like(y)
    (dx, dw) = torch.autograd.grad((y * weights).sum(), [x, layer.k_proj.weight])
    parts = [layer(part) for part in x.split(list(lengths), 1)]
    theirs = torch.cat(parts, 1)
    (their_dx, their_dw) = torch.autograd.grad((theirs * weights).sum(), [x, layer.k_proj.weight])
    torch.testing.assert_close(y, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(dx, their_dx, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dw, their_dw, rtol=1e-4, atol=1e-3)


def test_the_gradient_of_side_by_side_attention_with_dropout_is_right():
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(6, 2, dropout=0.3, dtype=torch.float64).train()
    x = torch.randn(1, 11, 6, dtype=torch.float64, requires_grad=True)

    def function(x):
        torch.manual_seed(1)
        return layer.attend(x, AttentionMask(lengths=(5, 6)), return_weights=False)[0]

    assert gradcheck(function, [x])


# -------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_of_the_feed_forward_is_right_and_a_wrong_one_is_caught(dropout, monkeypatch):
    torch.manual_seed(0)
    shapes = ((2, 5, 4), (7, 4), (7,), (4, 7), (4,))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def function(*tensors):
        torch.manual_seed(1)
        return FeedForward.apply(*tensors, dropout)

    assert gradcheck(function, tensors, rtol=1e-5)
    right = torch.ops.aten.gelu_backward
    monkeypatch.setattr(torch.ops.aten, "gelu_backward", lambda da, u: 1.001 * right(da, u))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(function, tensors, rtol=1e-5)


def test_the_feed_forward_under_autocast_has_its_dtype():
    inner, outer = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
    x = torch.randn(3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = feed_forward(x, inner, outer, dropout=0.0)
        theirs = outer(F.gelu(inner(x)))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(y, theirs, rtol=0.05, atol=0.02)


def patched_gradients(ours, weights, wanted, channels):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("w2v_attn.ops.fourier.CPU_CHANNELS", channels)
        return torch.autograd.grad((ours * weights).sum(), wanted)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    kernel=st.integers(1, 9),
    groups=st.sampled_from([1, 2, 3, 6]),
    windows=st.integers(1, 4),
    at_once=st.sampled_from([1, 4, 12]),  # channels: one group, some groups, all
)
def test_a_convolution_by_fourier_is_the_convolution_of_each_recording(lengths, kernel, groups, windows, at_once):
    torch.manual_seed(kernel)
    convolution = torch.nn.Conv1d(12, 12, kernel, padding=kernel // 2, groups=groups).double()
    norm = torch.nn.BatchNorm1d(12).double().eval() if kernel % 2 else None
    if norm is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    frames = torch.randn(sum(lengths), 12, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("w2v_attn.ops.fourier.CPU_WINDOWS", windows)
        patch.setattr("w2v_attn.ops.fourier.CPU_CHANNELS", at_once)
        ours = FourierConvolution(convolution, F.gelu, norm, torch.float64, trainable=True)(frames, lengths)

    def theirs_of(part):
        part = part.T[None]
        part = convolution(part if norm is None else norm(part))[0]
        return F.gelu(part[:, :-1] if kernel % 2 == 0 else part).T

    theirs = torch.cat([theirs_of(part) for part in frames.split(lengths)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    wanted = [frames, convolution.weight, convolution.bias]
    weights = torch.randn_like(theirs)
    for mine, their in zip(
        patched_gradients(ours, weights, wanted, at_once),
        torch.autograd.grad((theirs * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gelu", [False, True])
def test_products_are_torchs_whatever_the_strides(dtype, gelu):
    torch.manual_seed(0)
    x = torch.randn(3, 150, 400).to(dtype)[..., ::2]
    weights = (torch.randn(96, 200), torch.randn(200, 96).T, torch.randn(96, 777)[:, 100:300])
    for weight in weights:
        weight = (weight / 14).to(dtype) if weight.is_contiguous() else weight.to(dtype).div_(14)
        bias = torch.randn(96).to(dtype)
        theirs = F.linear(x.double(), weight.double(), bias.double())
        theirs = F.gelu(theirs) if gelu else theirs
        torches = F.linear(x, weight, bias)
        torches = F.gelu(torches) if gelu else torches
        bound = 2 * (torches.double() - theirs).norm() + 1e-6
        for ours in (gemm.linear(x, weight, bias, gelu=gelu), gemm.prepare_linear(weight, bias)(x, gelu=gelu)):
            assert ours.dtype == dtype
            assert (ours.double() - theirs).norm() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_summands_add_up_where_the_results_lie(dtype, maker):
    torch.manual_seed(0)
    x, y = torch.randn(150, 400, dtype=dtype)[::2, :200], torch.randn(150, 96, dtype=dtype)[::2]
    weight, bias = torch.randn(96, 200, dtype=dtype) / 14, torch.randn(96, dtype=dtype)
    summand = gemm.prepare_accumulating(weight, None)
    sums = y + x @ weight.T
    torch.testing.assert_close(gemm.prepare_accumulating(weight, bias)(x), x @ weight.T + bias, rtol=1e-5, atol=1e-5)
    found = summand.add_to(y, x)
    torch.testing.assert_close(found, sums, rtol=1e-5, atol=1e-5)
    assert found.data_ptr() == y.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batched_products_are_torchs(dtype):
    torch.manual_seed(0)
    for M, K, N in ((3, 5, 7), (190, 128, 230)):
        a, b, c = (torch.randn(2, *shape, dtype=dtype) for shape in ((M, K), (N, K), (M, N)))
        torch.testing.assert_close(gemm.bmm_nt(a, b), a @ b.mT, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gemm.bmm(a, b.mT), a @ b.mT, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gemm.bmm_tn(a, c), a.mT @ c, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same(norm_style):
    model = replace_attention(tiny_model(norm_style), unpad=True)
    values = torch.randn(2, 4000)
    with torch.no_grad():
        theirs = model(values).last_hidden_state
        ours = torch.compile(model, backend="aot_eager")(values).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
