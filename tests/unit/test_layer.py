"""The layer against what it is defined to be: torch's own operations, differentiated by torch."""

import copy
import itertools
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.gradcheck import GradcheckError

from w2v_attn import MultiHeadSelfAttention
from w2v_attn.attention import mathematics, weights
from w2v_attn.attention.backends import tiled
from w2v_attn.attention.masks import AttentionMask

B, T, H, C, K, V, M = 3, 7, 3, 5, 6, 12, 11
# Its own default of one part in a thousand would let the faults below pass.
gradcheck = partial(torch.autograd.gradcheck, rtol=1e-5, atol=1e-7)
BACKENDS_BY_NAME = ("tiled", "sdpa")
MASKS = ("none", "padding", "inner padding", "causal", "bool", "bias", "causal and padding", "bias and padding")


def make_layer(backend="auto", dtype=torch.float64, value_size=K, **options):
    torch.manual_seed(1)
    return MultiHeadSelfAttention(
        C,
        H,
        key_size=K,
        value_size=value_size,
        output_size=M,
        backend=backend,
        bias_initializer=lambda b: nn.init.normal_(b, std=0.3),
        dtype=dtype,
        **options,
    )


def make_mask(kind, dtype=torch.float64):
    """Keyword arguments of the layer's forward; the last recording, or a row of a mask, attends nothing."""
    torch.manual_seed(2)
    padding = torch.arange(T) < torch.tensor([T, 4, 0])[:, None]
    if kind == "inner padding":
        padding = torch.rand(B, T) > 0.4
        padding[2] = False
    allowed = torch.rand(B, 1, T, T) > 0.4
    allowed[0, 0, 2] = False
    bias = torch.randn(1, H, T, T, dtype=dtype)
    bias[0, 1, 3] = -torch.inf
    bias[0, 0, 2, 5] = -torch.inf
    arguments = {}
    if "padding" in kind:
        arguments["padding_mask"] = padding
    if "causal" in kind:
        arguments["attention_mask"] = "causal"
    if kind == "bool":
        arguments["attention_mask"] = allowed
    if "bias" in kind:
        arguments["attention_mask"] = bias
    return arguments


def reference(layer, x, padding_mask=None, attention_mask=None):
    """(y, P) by torch's own operations, with quadratic memory. P is 0 in rows that may attend no key."""
    q, k, v = (p(x).unflatten(-1, (H, -1)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    s = q @ k.mT * layer.scale
    allowed = torch.ones(s.shape, dtype=torch.bool)
    if padding_mask is not None:
        allowed = allowed & padding_mask[:, None, None]
    if isinstance(attention_mask, str):
        allowed = allowed & torch.ones(T, T, dtype=torch.bool).tril()
    elif attention_mask is not None and attention_mask.dtype == torch.bool:
        allowed = allowed & attention_mask
    elif attention_mask is not None:
        s = s + attention_mask.clamp(min=-1e30)
        allowed = allowed & (attention_mask > -torch.inf)
    p = s.masked_fill(~allowed, -1e300 if s.dtype == torch.float64 else -1e30).softmax(-1)
    p = p * allowed.any(-1, keepdim=True)
    return layer.out_proj((p @ v).transpose(1, 2).flatten(2)), p


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
@pytest.mark.parametrize("kind", MASKS)
def test_forward_and_scores_are_the_definition(backend, kind):
    layer, mask = make_layer(backend), make_mask(kind)
    x = torch.randn(B, T, C, dtype=torch.float64)
    ours, our_weights = layer(x, **mask, return_weights=True)
    theirs, their_weights = reference(layer, x, **mask)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(our_weights, their_weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
@pytest.mark.parametrize("kind", MASKS)
def test_gradients_are_those_of_the_definition(backend, kind):
    layer, mask = make_layer(backend), make_mask(kind)
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(B, T, M, dtype=torch.float64)
    wrt = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x, **mask), wrt, dy)
    theirs = torch.autograd.grad(reference(layer, x, **mask)[0], wrt, dy)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, -1e9, 1e9])
def test_a_bias_of_nothing_but_huge_numbers_leaves_scores_and_gradients_true(backend, lowest):
    """Softmax does not see what all keys of a row have in common; float32 would, if it were not taken off first."""
    layer = make_layer(backend, torch.float32)
    bias = torch.zeros(1, 1, T, T)
    bias[..., :4, :] = lowest
    bias[..., 5, 2:] = -abs(lowest)
    x = torch.randn(B, T, C, requires_grad=True)
    ours, weights = layer(x, attention_mask=bias, return_weights=True)
    shifted = bias.double() - bias.double().amax(-1, keepdim=True)
    exact, leaf = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    theirs, their_weights = reference(exact, leaf, attention_mask=shifted)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights.double(), their_weights, rtol=0, atol=1e-5)
    (our_dx,) = torch.autograd.grad(ours.square().sum(), x)
    (their_dx,) = torch.autograd.grad(theirs.square().sum(), leaf)
    torch.testing.assert_close(our_dx.double(), their_dx, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
def test_attention_weights_sum_to_one_in_half_precision_with_a_large_bias(backend):
    layer = MultiHeadSelfAttention(24, 4, backend=backend, dtype=torch.bfloat16)
    _, weights = layer(
        torch.randn(2, 13, 24, dtype=torch.bfloat16), attention_mask=30 * torch.randn(13, 13), return_weights=True
    )
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(2, 4, 13), rtol=0, atol=0.02)


def checked_function(layer, mask, x, return_weights=False):
    """A function of every tensor that gets a gradient, and these tensors, for gradcheck."""
    names = [name for name, _ in layer.named_parameters()]
    tensors = [x, *layer.parameters()]
    bias = mask.get("attention_mask")
    learned_bias = isinstance(bias, torch.Tensor) and bias.requires_grad
    if learned_bias:
        tensors.append(bias)

    def function(x, *others):
        torch.manual_seed(3)  # so that every call drops the same probabilities
        arguments = {**mask, "attention_mask": others[-1]} if learned_bias else mask
        parameters = dict(zip(names, others, strict=False))
        return torch.func.functional_call(layer, parameters, (x,), {**arguments, "return_weights": return_weights})

    return function, tuple(tensors)


@pytest.mark.parametrize(("dropout", "value_size"), [(0.0, K), (0.3, V)])
@pytest.mark.parametrize("kind", MASKS)
def test_gradcheck_explicit(kind, dropout, value_size):
    layer, mask = make_layer("tiled", value_size=value_size, dropout=dropout), make_mask(kind)
    if "bias" in kind:
        mask["attention_mask"] = mask["attention_mask"].clamp(min=-50).requires_grad_()
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    function, tensors = checked_function(layer, mask, x)
    assert gradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("kind", ["none", "causal and padding", "bias"])
def test_gradcheck_fused_and_through_the_scores(kind):
    for backend in BACKENDS_BY_NAME:
        layer, mask = make_layer(backend), make_mask(kind)
        x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
        function, tensors = checked_function(layer, mask, x, return_weights=True)
        assert gradcheck(function, tensors, fast_mode=True)


def test_gradcheck_in_full_for_every_entry():
    layer = make_layer("tiled", dropout=0.2)
    mask = {"attention_mask": torch.randn(1, H, T, T, dtype=torch.float64, requires_grad=True)}
    x = torch.randn(2, T, C, dtype=torch.float64, requires_grad=True)
    function, tensors = checked_function(layer, mask, x, return_weights=True)
    assert gradcheck(function, tensors)


@pytest.mark.parametrize(
    "shape", [(T, T), (1, T), (T, 1), (1, 1, 1, T), (B, 1, T, 1), (B, H, T, T), (H, 1, 1)], ids=str
)
def test_a_bias_gets_its_gradient_summed_where_it_was_broadcast(shape):
    layer = make_layer("tiled")
    x = torch.randn(B, T, C, dtype=torch.float64)
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(layer(x, attention_mask=bias).square().sum(), bias)
    (theirs,) = torch.autograd.grad(reference(layer, x, attention_mask=bias)[0].square().sum(), bias)
    assert ours.shape == bias.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


# Each gradient that the derivation gives, wrong by one part in a thousand.
FAULTS = {
    "project_backward_weight": lambda right: lambda *a: right(*a) * 1.001,
    "project_backward_bias": lambda right: lambda *a: right(*a) * 1.001,
    "project_backward_input": lambda right: lambda *a, **k: right(*a, **k) * 1.001,
    "softmax_backward": lambda right: lambda *a: right(*a) * 1.001,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_gradient_that_is_wrong_by_a_thousandth_is_caught(fault, monkeypatch):
    layer = make_layer("tiled")
    x = torch.randn(2, T, C, dtype=torch.float64, requires_grad=True)
    function, tensors = checked_function(layer, {}, x, return_weights=fault == "softmax_backward")
    monkeypatch.setattr(mathematics, fault, FAULTS[fault](getattr(mathematics, fault)))
    with pytest.raises(GradcheckError):
        gradcheck(function, tensors, fast_mode=True)


def test_a_weighted_sum_that_is_wrong_by_a_thousandth_is_caught(monkeypatch):
    layer = make_layer("tiled")
    x = torch.randn(2, T, C, dtype=torch.float64, requires_grad=True)
    function, tensors = checked_function(layer, {}, x, return_weights=True)
    right = weights.WeightedValues.backward

    def faulty(ctx, do):
        dp, dv, _ = right(ctx, do)
        return dp * 1.001, dv, None

    monkeypatch.setattr(weights.WeightedValues, "backward", staticmethod(faulty))
    with pytest.raises(GradcheckError):
        gradcheck(function, tensors, fast_mode=True, rtol=1e-5, atol=1e-7)


def test_gradcheck_through_scores_and_dropout():
    q, k, v = (torch.randn(2, H, 7, size, dtype=torch.float64, requires_grad=True) for size in (5, 5, 3))

    def attend(q, k, v):
        torch.manual_seed(0)
        return weights.attend_with_weights(q, k, v, AttentionMask(), scale=0.4, dropout=0.3)

    assert gradcheck(attend, (q, k, v), fast_mode=True, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_stay_on_scores_that_retain_them(dropout):
    """As stock's do: what comes out is made from them. With dropout they are those before it."""
    layer = make_layer("tiled").train()
    layer.dropout = dropout
    x = torch.randn(2, T, C, dtype=torch.float64)
    y, p = layer(x, return_weights=True)
    p.retain_grad()
    y.square().sum().backward()
    assert p.grad is not None
    assert p.grad.abs().max() > 0
    assert p.sum(-1).allclose(torch.ones_like(p[..., 0]))
    if dropout:
        assert 0.2 < (p.grad == 0).double().mean() < 0.6


@pytest.mark.parametrize("wrong", ["dq", "dk", "dv", "ds"])
def test_a_core_that_is_wrong_by_a_thousandth_is_caught(wrong, monkeypatch):
    right = tiled.attend_rows_backward

    def faulty(do, q, k, v, delta, *, dk_HTD, dv_HTE, **options):
        before_k, before_v = dk_HTD.clone(), dv_HTE.clone()
        dq, ds = right(do, q, k, v, delta, dk_HTD=dk_HTD, dv_HTE=dv_HTE, **options)
        if wrong == "dk":
            dk_HTD.add_(0.001 * (dk_HTD - before_k))
        if wrong == "dv":
            dv_HTE.add_(0.001 * (dv_HTE - before_v))
        return dq * (1.001 if wrong == "dq" else 1), ds * (1.001 if wrong == "ds" else 1)

    layer = make_layer("tiled")
    x = torch.randn(2, T, C, dtype=torch.float64, requires_grad=True)
    mask = {"attention_mask": torch.randn(1, H, T, T, dtype=torch.float64, requires_grad=True)}
    function, tensors = checked_function(layer, mask, x)
    monkeypatch.setattr(tiled, "attend_rows_backward", faulty)
    with pytest.raises(GradcheckError):
        gradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
@pytest.mark.parametrize("kind", ["none", "padding", "causal"])
def test_in_float32_our_error_is_at_most_twice_torchs_own(backend, kind):
    frames, heads, channels = 331, 4, 64
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(channels, heads, backend=backend, bias_initializer="narrow_normal")
    exact = copy.deepcopy(layer).double()
    exact.backend = "tiled"
    x = torch.randn(2, frames, channels)
    dy = torch.randn(2, frames, channels)
    real = torch.arange(frames) < torch.tensor([frames, 200])[:, None]
    mask = {"padding_mask": real} if kind == "padding" else {"attention_mask": "causal"} if kind == "causal" else {}

    def run(function, module, dtype):
        leaf = x.to(dtype).requires_grad_()
        y = function(module, leaf)
        return [y, *torch.autograd.grad(y, [leaf, *module.parameters()], dy.to(dtype))]

    def stock(module, leaf):
        q, k, v = (
            p(leaf).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (module.q_proj, module.k_proj, module.v_proj)
        )
        keys = real[:, None, None] if kind == "padding" else None
        o = F.scaled_dot_product_attention(q, k, v, keys, is_causal=kind == "causal")
        return module.out_proj(o.transpose(1, 2).flatten(2))

    truth = run(lambda m, leaf: m(leaf, **mask), exact, torch.float64)
    ours = run(lambda m, leaf: m(leaf, **mask), layer, torch.float32)
    theirs = run(stock, layer, torch.float32)
    for true, our, their in zip(truth, ours, theirs, strict=True):
        # The gradient of the key bias is 0 in exact arithmetic: what is left is rounding, of the size of the sums.
        floor = 1e-6 * true.abs().max().item() + 1e-4
        our_error, their_error = (our - true).abs().max().item(), (their - true).abs().max().item()
        assert our_error <= max(2 * their_error, floor)


def test_half_precisions_keep_their_softmax_in_float32():
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(64, 4)
    x = 3 * torch.randn(2, 97, 64)
    truth = layer(x)
    for backend, dtype in itertools.product(BACKENDS_BY_NAME, (torch.bfloat16, torch.float16)):
        ours = copy.deepcopy(layer).to(dtype)
        ours.backend = backend
        q, k, v = (
            p(x.to(dtype)).unflatten(-1, (4, -1)).transpose(1, 2) for p in (ours.q_proj, ours.k_proj, ours.v_proj)
        )
        s = q @ k.mT * ours.scale
        theirs = ours.out_proj((s.softmax(-1) @ v).transpose(1, 2).flatten(2))
        error = (ours(x.to(dtype)).float() - truth).norm()
        assert ours(x.to(dtype)).dtype == dtype
        assert error <= 1.1 * (theirs.float() - truth).norm()


# ------------------------------------------------------------------------------------------------- dropout


def test_dropout_comes_from_torchs_generator_and_only_in_training():
    layer = MultiHeadSelfAttention(24, 4, dropout=0.5)
    x = torch.randn(2, 13, 24)
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(24, 4, dropout=0.3)
    x = torch.randn(1, 11, 24)
    with torch.no_grad():
        mean = torch.stack([layer(x) for _ in range(3000)]).mean(0)
        spread = torch.stack([layer(x) for _ in range(300)]).std(0)
        exact = layer.eval()(x)
    assert ((mean - exact).abs() <= 6 * spread / 3000**0.5 + 1e-6).all()


@given(rate=st.floats(0.001, 0.999), seed=st.integers(0, 2**62))
@settings(max_examples=25, deadline=None)
def test_dropout_drops_at_its_rate_and_the_same_entries_for_the_same_seed(rate, seed):
    shape = (3, 101, 211)
    dropout_mask = tiled.DropoutMask(seed, rate, torch.device("cpu"), torch.float32)
    keep = dropout_mask.draw(*shape)
    assert dropout_mask.keep_rate == 1 - rate
    assert set(keep.unique().tolist()) <= {0.0, 1.0}
    # Six standard deviations, of the entries and of the rows' roundings to a 256th.
    spread = (rate * (1 - rate) / keep.numel()) ** 0.5 + 0.5 / 256 / (3 * 101) ** 0.5
    assert abs(keep.mean().item() - dropout_mask.keep_rate) < 6 * spread
    assert torch.equal(keep, tiled.DropoutMask(seed, rate, torch.device("cpu"), torch.float32).draw(*shape))
    # No byte of the 64-bit numbers is special: each of the eight drops alike.
    bytewise = keep.flatten()[: keep.numel() // 8 * 8].view(-1, 8).mean(0)
    assert (bytewise - dropout_mask.keep_rate).abs().max() < 0.05


def test_the_rate_of_dropout_is_exact_and_not_rounded():
    rate = 0.1  # 25.6 of 256 levels
    dropout_mask = tiled.DropoutMask(1, rate, torch.device("cpu"), torch.float32)
    share = torch.stack([dropout_mask.draw(4, 500, 500) for _ in range(40)]).double().mean().item()
    assert abs(share - 0.9) < 1e-4  # to the next 256th it would be 1.6e-3 off


def test_forward_and_backward_drop_the_same_entries_over_many_tiles(monkeypatch):
    # One head and few rows a tile, so that the stream of the seed is read in many pieces, in both directions.
    monkeypatch.setattr(tiled, "CPU_TILE", 64)
    monkeypatch.setattr(tiled, "MIN_ROWS", 2)
    layer = make_layer("tiled", dropout=0.4)
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    function, tensors = checked_function(layer, make_mask("causal and padding"), x)
    assert gradcheck(function, tensors, fast_mode=True)


def test_a_change_of_threads_between_forward_and_backward_changes_nothing():
    layer = make_layer("tiled", dropout=0.4, dtype=torch.float32)
    x = torch.randn(B, T, C)
    gradients = []
    before = torch.get_num_threads()
    try:
        for threads in (before, 1, 3):
            torch.set_num_threads(before)
            torch.manual_seed(0)
            y = layer(x)
            torch.set_num_threads(threads)
            gradients.append(torch.autograd.grad(y.sum(), layer.v_proj.weight)[0])
    finally:
        torch.set_num_threads(before)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
def test_rows_without_a_key_give_zeros_in_both_directions(backend):
    layer = make_layer(backend)
    nn.init.zeros_(layer.out_proj.bias)
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    real = torch.ones(B, T, dtype=torch.bool)
    real[1] = False
    y, weights = layer(x, padding_mask=real, return_weights=True)
    (dx,) = torch.autograd.grad(y.square().sum() + weights.square().sum(), x)
    assert not y[1].any()
    assert not weights[1].any()
    assert not dx[1].any()
    assert torch.isfinite(dx).all()
    assert dx[0].any()


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
@pytest.mark.parametrize(("batch", "frames"), [(0, 5), (2, 0), (0, 0), (2, 1)])
def test_no_recordings_no_frames_and_one_frame_work(backend, batch, frames):
    layer = make_layer(backend)
    x = torch.randn(batch, frames, C, dtype=torch.float64, requires_grad=True)
    y, weights = layer(x, padding_mask=torch.ones(batch, frames, dtype=torch.bool), return_weights=True)
    assert y.shape == (batch, frames, M)
    assert weights.shape == (batch, H, frames, frames)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


def test_views_and_strided_inputs_are_the_same_as_copies():
    layer = make_layer()
    wide = torch.randn(T, 2 * B, 2 * C, dtype=torch.float64)
    strided = wide.transpose(0, 1)[::2, :, ::2].requires_grad_()
    assert not strided.is_contiguous()
    dy = torch.randn(B, M, T, dtype=torch.float64).transpose(1, 2)
    ours = torch.autograd.grad(layer(strided), [strided, *layer.parameters()], dy)
    copied = strided.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    theirs = torch.autograd.grad(layer(copied), [copied, *layer.parameters()], dy.contiguous())
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
def test_padding_does_not_change_real_frames(backend):
    layer = make_layer(backend, torch.float32)
    x = torch.randn(1, T, C)
    alone = layer(x)
    padded = torch.cat([x, 1e4 * torch.randn(1, 5, C)], 1)
    real = torch.arange(T + 5)[None] < T
    torch.testing.assert_close(layer(padded, padding_mask=real)[:, :T], alone, rtol=0, atol=1e-6)


@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 40),
    heads=st.integers(1, 4),
    key=st.integers(1, 5),
    value=st.integers(1, 5),
    rows=st.integers(1, 9),
)
@settings(max_examples=30, deadline=None)
def test_any_sizes_and_any_tiling_give_the_definition(batch, frames, heads, key, value, rows):
    torch.manual_seed(frames)
    q, k = torch.randn(2, batch, heads, frames, key, dtype=torch.float64)
    v = torch.randn(batch, heads, frames, value, dtype=torch.float64)
    mask = AttentionMask(padding=torch.rand(batch, frames) > 0.3, causal=frames % 2 == 0)
    plan = tiled.TiledContext(heads=max(1, heads - 1), rows=rows, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "_plan", lambda *_: plan)
        o, _, _ = tiled.forward(q, k, v, mask, scale=0.5, dropout=0.0)
    s = (q @ k.mT * 0.5).masked_fill(~mask.padding[:, None, None], -torch.inf)
    if mask.causal:
        s = s.masked_fill(~torch.ones(frames, frames, dtype=torch.bool).tril(), -torch.inf)
    torch.testing.assert_close(o, s.softmax(-1).nan_to_num() @ v, rtol=0, atol=1e-12)
    assert (o[s.isneginf().all(-1)] == 0).all()


# ----------------------------------------------------------------------------------------- what is computed


def test_gradients_that_nobody_needs_are_not_computed(monkeypatch):
    calls = []
    for name in ("project_backward_weight", "project_backward_bias", "project_backward_input"):
        right = getattr(mathematics, name)
        monkeypatch.setattr(
            mathematics, name, lambda *a, right=right, name=name, **k: calls.append(name) or right(*a, **k)
        )
    core_runs = []
    right_core = tiled.backward
    layer = make_layer("tiled", torch.float32)
    from w2v_attn.attention.backends import select

    monkeypatch.setitem(
        select.BACKENDS_BY_NAME,
        "tiled",
        select.Backend(
            "tiled", tiled.unsupported_reason, tiled.forward, lambda *a, **k: core_runs.append(1) or right_core(*a, **k)
        ),
    )
    x = torch.randn(B, T, C)
    layer(x).sum().backward()
    assert calls.count("project_backward_input") == 1  # dO, and no dX: the input needs none

    calls.clear()
    core_runs.clear()
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name.startswith("out_proj"))
    layer(x).sum().backward()
    assert sorted(calls) == ["project_backward_bias", "project_backward_weight"]
    assert not core_runs  # only the output projection learns: the heads are not gone through again


def test_a_second_derivative_is_refused_and_not_wrong():
    layer = make_layer()
    x = torch.randn(1, T, C, dtype=torch.float64, requires_grad=True)
    dy = torch.ones(1, T, M, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(layer(x), x, dy, create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
def test_nothing_quadratic_is_kept_for_backward(backend):
    frames = 512
    layer = MultiHeadSelfAttention(16, 2, dropout=0.1 if backend == "tiled" else 0.0, backend=backend)
    x = torch.randn(1, frames, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert max(kept) < frames * frames / 4


def test_autocast_computes_in_its_dtype_and_gives_gradients_in_the_parameters_dtype():
    layer = MultiHeadSelfAttention(24, 4)
    x = torch.randn(2, 13, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert layer.q_proj.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.02)


def test_projections_that_are_no_plain_linear_maps_are_called(monkeypatch):
    layer = make_layer(dtype=torch.float64)
    x = torch.randn(B, T, C, dtype=torch.float64)
    plain = layer(x)

    class LowRank(nn.Module):
        """As LoRA does it: the frozen linear map and a product of two thin ones beside it."""

        def __init__(self, base):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down = nn.Parameter(torch.randn(2, C, dtype=torch.float64))
            self.up = nn.Parameter(torch.zeros(base.out_features, 2, dtype=torch.float64))

        def forward(self, x):
            return self.base(x) + x @ self.down.T @ self.up.T

    layer.q_proj = LowRank(layer.q_proj)
    layer.v_proj = LowRank(layer.v_proj)
    torch.testing.assert_close(layer(x), plain)
    layer(x).square().sum().backward()
    assert layer.q_proj.up.grad.any()
    assert layer.v_proj.up.grad.any()
    assert layer.q_proj.base.weight.grad is None
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    function = lambda *p: torch.func.functional_call(layer, dict(zip(names, p, strict=True)), (x,))  # noqa: E731
    assert gradcheck(function, [p for p in layer.parameters() if p.requires_grad], fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS_BY_NAME)
def test_under_autocast_substituted_projections_lose_no_more_than_plain_ones(backend):
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(64, 4, backend=backend)
    exact = copy.deepcopy(layer).double()
    x, dy = torch.randn(1, 300, 64), torch.randn(1, 300, 64)

    def gradient(module, dtype):
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(leaf)
        return torch.autograd.grad(y, leaf, dy.to(y.dtype))[0].double()

    truth = gradient(exact, torch.float64)
    plain = (gradient(layer, torch.float32) - truth).norm()
    layer.q_proj.register_forward_hook(lambda *_: None)  # now it is called as a module
    assert (gradient(layer, torch.float32) - truth).norm() < 1.3 * plain


def test_autocast_leaves_float64_alone():
    layer, x = make_layer(), torch.randn(1, T, C, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), make_layer()(x))
        assert layer(x).dtype == torch.float64


def test_hooks_on_a_projection_are_seen():
    layer = make_layer(dtype=torch.float32)
    seen = []
    layer.k_proj.register_forward_hook(lambda *_: seen.append("k"))
    layer(torch.randn(1, T, C))
    assert seen == ["k"]


def test_a_layer_survives_copies_pickles_and_its_state_dict():
    layer = make_layer(dtype=torch.float32)
    x = torch.randn(1, T, C)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    other = make_layer(dtype=torch.float32)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(x), layer(x))
    assert {name.split(".")[0] for name in layer.state_dict()} == {"q_proj", "k_proj", "v_proj", "out_proj"}


def test_torch_compile_gives_the_same():
    layer = nn.Sequential(nn.Linear(24, 24), MultiHeadSelfAttention(24, 4), nn.Linear(24, 24))
    x = torch.randn(2, 13, 24)
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer[1].q_proj.weight.grad is not None


# ---------------------------------------------------------------------------------------------- arguments


def test_widths_are_free_of_each_other_and_default_as_in_matlab():
    layer = MultiHeadSelfAttention(5, 3, key_size=6, value_size=12, output_size=7)
    assert layer(torch.randn(2, 4, 5)).shape == (2, 4, 7)
    layer = MultiHeadSelfAttention(6, 3)
    assert (layer.key_size, layer.value_size, layer.output_size) == (6, 6, 6)
    layer = MultiHeadSelfAttention(5, 3, key_size=9)
    assert (layer.key_size, layer.value_size, layer.output_size) == (9, 9, 5)
    assert layer.scale == pytest.approx(3**-0.5)
    assert MultiHeadSelfAttention(5, 3, key_size=9, bias=False).q_proj.bias is None


def test_a_scale_of_ones_own_is_used():
    layer = make_layer(scale=0.9)
    x = torch.randn(B, T, C, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference(layer, x)[0], rtol=0, atol=1e-12)


def test_initialisers_fill_what_they_say():
    layer = MultiHeadSelfAttention(32, 4)
    bound = (6 / 64) ** 0.5
    assert 0.8 * bound < layer.q_proj.weight.abs().max() <= bound  # Glorot
    assert not layer.q_proj.bias.any()
    layer.initialize("narrow_normal", "ones")
    assert layer.v_proj.weight.std() < 0.02
    assert (layer.out_proj.bias == 1).all()
    layer.initialize(lambda weight: nn.init.constant_(weight, 3.0))
    assert (layer.k_proj.weight == 3).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_size": 10, "num_heads": 3}, "num_heads must divide key_size"),
        ({"input_size": 9, "num_heads": 3, "value_size": 10}, "num_heads must divide value_size"),
        ({"input_size": 9, "num_heads": 0}, "num_heads must divide"),
        ({"input_size": 9, "num_heads": 3, "dropout": 1.0}, "dropout must be in"),
        ({"input_size": 9, "num_heads": 3, "backend": "flash"}, "auto, tiled, sdpa"),
        ({"input_size": 9, "num_heads": 3, "weight_initializer": "golrot"}, "weight_initializer must be one of"),
    ],
)
def test_wrong_arguments_are_told(arguments, says):
    with pytest.raises(ValueError, match=says):
        MultiHeadSelfAttention(**arguments)


@pytest.mark.parametrize(
    ("shape", "mask", "says"),
    [
        ((B, T, C + 1), {}, r"must be \[B, T, 5\], got \[3, 7, 6\]"),
        ((T, C), {}, r"must be \[B, T, 5\]"),
        ((B, T, C), {"padding_mask": torch.ones(B, T)}, "padding_mask must be bool"),
        ((B, T, C), {"padding_mask": torch.ones(B, T + 1, dtype=torch.bool)}, "padding_mask must be bool"),
        ((B, T, C), {"attention_mask": "casual"}, 'must be "causal" or a tensor'),
        ((B, T, C), {"attention_mask": torch.ones(T, T + 1)}, "must broadcast to"),
        ((B, T, C), {"attention_mask": torch.ones(T, T, dtype=torch.long)}, "bool .* or float"),
    ],
)
def test_wrong_inputs_are_told(shape, mask, says):
    with pytest.raises(ValueError, match=says):
        make_layer(dtype=torch.float32)(torch.randn(shape), **mask)


def test_a_core_that_cannot_says_so_and_auto_takes_one_that_can():
    x = torch.randn(2, 13, 24)
    with pytest.raises(ValueError, match="no dropout"):
        MultiHeadSelfAttention(24, 4, dropout=0.1, backend="sdpa")(x)
    with pytest.raises(ValueError, match="as many channels per head"):
        MultiHeadSelfAttention(24, 4, value_size=12, backend="sdpa")(x)
    bias = torch.zeros(13, 13, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient for what is added"):
        MultiHeadSelfAttention(24, 4, backend="sdpa")(x, attention_mask=bias)
    layer = MultiHeadSelfAttention(24, 4, dropout=0.1)
    assert layer.backend_for(x) == "tiled"
    assert layer.eval().backend_for(x) == "sdpa"
    assert MultiHeadSelfAttention(24, 4, value_size=12).backend_for(x) == "tiled"
