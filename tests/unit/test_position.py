"""Relative positions in the attention scores: every backend computes the equation and its derivatives."""

import copy

import pytest
import torch
from conftest import FEW_BUCKETS, tiny_bert, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.autograd.gradcheck import GradcheckError

from w2v_attn import MultiHeadSelfAttention, replace_attention
from w2v_attn.attention import packed, weights
from w2v_attn.attention.autograd import AttentionOptions, attention_core
from w2v_attn.attention.backends import select
from w2v_attn.attention.gate import PositionGate
from w2v_attn.attention.masks import AttentionMask
from w2v_attn.attention.relative import RelativePositions
from w2v_attn.attention.rotary import Rotate

B, H, T, D, SCALE = 2, 3, 11, 5, 0.3
# Distances before and after a query that are distinguished: fewer than there are, more on one side, and all.
REACHES = [(2, 2), (0, 3), (4, 1), (T - 1, T - 1), (T + 2, T + 1)]
KINDS = ("table", "gated", "vectors", "shared vectors")


def numbers(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positions_of(kind, reach, *, batch=B, frames=T, dtype=torch.float64):
    left, right = reach
    R = left + right + 1
    if kind == "table":
        return RelativePositions(left=left, table=numbers(H, R, seed=4, dtype=dtype))
    if kind == "gated":
        gate = numbers(batch, frames, H, seed=5, dtype=dtype).transpose(1, 2)  # the memory layout in WavLM
        return RelativePositions(left=left, table=numbers(H, R, seed=4, dtype=dtype), gate=gate)
    vectors = numbers(1 if kind.startswith("shared") else H, R, D, seed=6, dtype=dtype)
    queries = numbers(batch, H, frames, D, seed=7, dtype=dtype)
    return RelativePositions(left=left, queries=queries, vectors=vectors, scale=SCALE)


def as_bias(positions, batch=B, frames=T):
    """Compute the equation literally, one pair of frames at a time."""
    found = []
    for b in range(batch):
        for h in range(H):
            for i in range(frames):
                for j in range(frames):
                    tensor = positions.table if positions.vectors is None else positions.vectors
                    r = min(max(j - i + positions.left, 0), tensor.shape[1] - 1)
                    if positions.vectors is None:
                        gate = 1.0 if positions.gate is None else positions.gate[b, h, i]
                        found.append(gate * positions.table[h, r])
                    else:
                        vector = positions.vectors[h if len(positions.vectors) > 1 else 0, r]
                        found.append(positions.scale * (positions.queries[b, h, i] @ vector))
    return torch.stack([torch.as_tensor(one) for one in found]).view(batch, H, frames, frames)


def options(mask, *, backend="tiled", dropout=0.0):
    return AttentionOptions(num_heads=H, scale=SCALE, dropout=dropout, backend=backend, mask=mask)


def tensors_of(positions):
    return [x for x in (positions.table, positions.gate, positions.queries, positions.vectors) if x is not None]


def with_tensors(positions, tensors):
    names = [name for name in ("table", "gate", "queries", "vectors") if getattr(positions, name) is not None]
    given_ = dict(zip(names, tensors, strict=True))
    return RelativePositions(left=positions.left, scale=positions.scale, **given_)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_backends_compute_the_equation(kind, reach, backend):
    q, k, v = (numbers(B, H, T, D, seed=seed) for seed in (1, 2, 3))
    positions = positions_of(kind, reach)
    ours = attention_core(q, k, v, options(AttentionMask(positions=positions), backend=backend))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, as_bias(positions), scale=SCALE)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", ["padding", "causal", "bias"])
@pytest.mark.parametrize("kind", ["gated", "vectors"])
@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_positions_and_masks_can_be_combined(kind, masked, backend):
    q, k, v = (numbers(B, H, T, D, seed=seed) for seed in (1, 2, 3))
    positions = positions_of(kind, (2, 4))
    padding = torch.arange(T) < torch.tensor([T, 7])[:, None]
    bias = numbers(B, 1, T, T, seed=8)
    mask, added = {
        "padding": (AttentionMask(padding=padding), torch.zeros(()).masked_fill(~padding, -torch.inf)[:, None, None]),
        "causal": (AttentionMask(causal=True), torch.full((T, T), -torch.inf).triu(1)),
        "bias": (AttentionMask(bias=bias), bias),
    }[masked]
    ours = attention_core(q, k, v, options(mask.with_positions(positions), backend=backend))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, as_bias(positions) + added, scale=SCALE)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reach", REACHES[:4])
@pytest.mark.parametrize("how", ["alone", "packed", "padded", "scores"])
def test_gradients_equal_finite_differences(kind, reach, how):
    frames = T
    q, k, v = (numbers(1 if how == "packed" else B, H, frames, D, seed=seed) for seed in (1, 2, 3))
    positions = positions_of(kind, reach, batch=len(q))
    mask = {
        "packed": AttentionMask(lengths=(4, 7)),
        "padded": AttentionMask(padding=torch.arange(T) < torch.tensor([T, 7])[:, None]),
    }.get(how, AttentionMask())

    def attend(q, k, v, *tensors):
        asked = mask.with_positions(with_tensors(positions, tensors))
        if how == "scores":
            return weights.attend_with_weights(q, k, v, asked, scale=SCALE, dropout=0.0)
        return attention_core(q, k, v, options(asked))

    inputs = [x.requires_grad_() for x in (q, k, v, *tensors_of(positions))]
    assert gradcheck(attend, inputs, fast_mode=True, rtol=1e-5, atol=1e-7)


def test_a_slightly_wrong_gradient_is_detected(monkeypatch):
    stock = RelativePositions.tile_backward

    def too_large(self, ds, *arguments, **gradients):
        stock(self, ds * 1.001, *arguments, **gradients)

    monkeypatch.setattr(RelativePositions, "tile_backward", too_large)
    with pytest.raises(GradcheckError):
        test_gradients_equal_finite_differences("gated", (2, 2), "alone")


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_drops_the_same_entries_forward_and_backward(kind):
    q, k, v = (numbers(B, H, T, D, seed=seed) for seed in (1, 2, 3))
    positions = positions_of(kind, (3, 2))

    def attend(q, *tensors):
        torch.manual_seed(0)
        mask = AttentionMask(positions=with_tensors(positions, tensors))
        return attention_core(q, k, v, options(mask, dropout=0.3))

    assert gradcheck(attend, [x.requires_grad_() for x in (q, *tensors_of(positions))], fast_mode=True)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    reach=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    kind=st.sampled_from(KINDS),
)
def test_packed_recordings_equal_each_recording_alone(lengths, reach, kind):
    N = sum(lengths)
    q, k, v = (numbers(1, H, N, D, seed=seed) for seed in (1, 2, 3))
    positions = positions_of(kind, reach, batch=1, frames=N)
    packed = attention_core(q, k, v, options(AttentionMask(lengths=tuple(lengths), positions=positions)))
    end = 0
    for length in lengths:
        part = slice(end, end + length)
        end += length
        alone = attention_core(
            *(x[:, :, part] for x in (q, k, v)), options(AttentionMask(positions=positions.slice_frames(part)))
        )
        torch.testing.assert_close(packed[:, :, part], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [40, 200, 600])
def test_short_and_long_recordings_of_the_encoder_have_the_same_positions(kind, dtype, frames):
    """All heads at once, the tiled backend, and tiles of rows and keys."""
    channels = 16
    q, k, v = (numbers(frames, H * channels, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    positions = positions_of(kind, (30, 40), batch=1, frames=frames, dtype=torch.float32)
    if positions.vectors is not None:
        wide = {"queries": numbers(1, H, frames, channels, seed=7), "vectors": numbers(H, 71, channels, seed=6)}
        positions = RelativePositions(left=30, scale=SCALE, **{name: x.float() for name, x in wide.items()})
    heads = [x.float().view(1, frames, H, channels).transpose(1, 2) for x in (q, k, v)]
    keys, values = (x.view(frames, H, channels).transpose(0, 1).contiguous() for x in (k, v))
    bias = positions.tile(0, slice(0, H), slice(0, frames), slice(0, frames), torch.float32)
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads, bias[None], scale=SCALE)[0]
    theirs = theirs.transpose(0, 1).flatten(1)
    bound = 1e-5 if dtype is torch.float32 else 5e-2
    found = {
        "attend": packed.attend_packed(q, k, v, [frames], num_heads=H, scale=SCALE, positions=positions),
        "attend_all": packed.attend_all(q, keys, values, num_heads=H, scale=SCALE, positions=positions),
        "rows of attend_all": torch.cat(
            [
                packed.attend_all(
                    q[rows],
                    keys,
                    values,
                    num_heads=H,
                    scale=SCALE,
                    first_row=rows.start,
                    positions=positions.slice_frames(rows),
                )
                for rows in (slice(0, 13), slice(13, frames))
            ]
        ),
        "attend_window": packed.attend_window(
            q, k, v, num_heads=H, scale=SCALE, first_row=0, first_key=0, reach=frames, positions=positions
        ),
    }
    for name, ours in found.items():
        assert (ours.float() - theirs).abs().max() < bound, name


@pytest.mark.parametrize(
    ("kind", "reach"),
    [("table", (5, 5)), ("gated", (5, 5)), ("vectors", (3, 6)), ("shared vectors", (23, 23)), ("vectors", (0, 0))],
)
def test_the_triton_backend_has_positions_and_their_gradients(kind, reach):
    pytest.importorskip("triton")
    q, k, v = (numbers(1, H, 24, D, seed=seed, dtype=torch.float32) for seed in (1, 2, 3))
    positions = positions_of(kind, reach, batch=1, frames=24, dtype=torch.float32)

    def found(backend):
        inputs = [x.clone().requires_grad_() for x in (q, k, v, *tensors_of(positions))]
        mask = AttentionMask(lengths=(9, 15), positions=with_tensors(positions, inputs[3:]))
        o = attention_core(*inputs[:3], options(mask, backend=backend))
        (o * numbers(*o.shape, seed=9, dtype=torch.float32)).sum().backward()
        return [o.detach(), *(x.grad for x in inputs)]

    for ours, theirs in zip(found("triton"), found("tiled"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_backends_report_which_positions_are_unsupported():
    q = numbers(1, H, 24, D, dtype=torch.float32)
    vectors = AttentionMask(positions=positions_of("vectors", (2, 3), batch=1, frames=24, dtype=torch.float32))
    lopsided = AttentionMask(positions=positions_of("table", (2, 3), batch=1, frames=24, dtype=torch.float32))
    far = AttentionMask(positions=positions_of("vectors", (4000, 4000), batch=1, frames=24, dtype=torch.float32))
    for mask, told in (
        (lopsided, "as many distances before a query as after it"),
        (far, "at most 4096 distances, got 8001"),
    ):
        with pytest.raises(ValueError, match=told):
            select.select_backend("triton", q, q, mask, dropout=0.0, needs_bias_grad=False)
    with pytest.raises(ValueError, match="no gradient for what is added"):
        select.select_backend("sdpa", q, q, vectors, dropout=0.0, needs_bias_grad=True)
    long = q.new_empty(1, H, 3000, D)
    with pytest.raises(ValueError, match="position biases"):
        select.select_backend("sdpa", long, long, vectors, dropout=0.0, needs_bias_grad=False)
    assert select.select_backend("auto", long, long, vectors, dropout=0.0, needs_bias_grad=False).name == "tiled"


# ------------------------------------------------------------------------------------------------ gate and rotation


def test_the_gate_and_its_gradients_equal_wavlms():
    x, weight, bias, c = numbers(B, T, H * D), numbers(8, D, seed=1), numbers(8, seed=2), numbers(H, seed=3)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias, c)]
    projected = torch.nn.functional.linear(x.view(B, T, H, D), weight, bias).view(B, T, H, 2, 4).sum(-1)
    a, r = projected.sigmoid().unbind(-1)
    torch.testing.assert_close(PositionGate.apply(*inputs), (a * (r * c - 1) + 2).transpose(1, 2))
    assert gradcheck(PositionGate.apply, inputs, fast_mode=True)


def test_rotary_embedding_rotates_pairs_and_its_backward_rotates_them_back():
    x, D_even = numbers(B, T, H * 6).requires_grad_(), 6
    angles = torch.outer(torch.arange(T).double(), 0.5 ** torch.arange(3).double()).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    y = Rotate.apply(x, cos, sin)
    heads, turned = (z.view(B, T, H, 2, D_even // 2) for z in (x, y))
    as_complex = (
        torch.complex(heads[..., 0, :], heads[..., 1, :])
        * torch.polar(torch.ones(T, 3).double(), angles[:, :3])[:, None]
    )
    torch.testing.assert_close(turned, torch.stack([as_complex.real, as_complex.imag], -2))
    assert gradcheck(Rotate.apply, (x, cos, sin), fast_mode=True)


# ------------------------------------------------------------------------------------------------ in the families


@pytest.mark.parametrize("family", ["wavlm-group", "wavlm-layer", "conformer-relative", "conformer-rotary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_gradient_equals_stocks(family, dtype):
    theirs = tiny_model(family, attention="eager").to(dtype)
    ours = replace_attention(copy.deepcopy(theirs))
    waves = numbers(2, 9000, dtype=dtype)
    mask = torch.ones(2, 9000, dtype=torch.long)
    mask[1, 6500:] = 0
    for model in (ours, theirs):
        model(waves, attention_mask=mask).last_hidden_state.square().sum().backward()
    their_gradients = dict(theirs.named_parameters())
    bound = 1e-9 if dtype is torch.float64 else 2e-4
    for name, parameter in ours.named_parameters():
        their = their_gradients[name].grad
        assert (parameter.grad is None) == (their is None), name
        if their is not None:
            assert (parameter.grad - their).abs().max() <= bound * max(1.0, float(their.abs().max())), name


@pytest.mark.parametrize("kind", ["relative_key", "relative", "rotary", None])
@pytest.mark.parametrize("padded", [False, True])
def test_wav2vec2_bert_and_its_gradients_equal_stocks(kind, padded):
    theirs = tiny_bert(kind).double()
    ours = replace_attention(copy.deepcopy(theirs))
    inputs = {"input_features": numbers(2, 31, 160)}
    if padded:
        inputs["attention_mask"] = (torch.arange(31) < torch.tensor([31, 20])[:, None]).long()
    found = []
    for model in (ours, theirs):
        output = model(**inputs, output_attentions=True)
        (output.last_hidden_state.square().sum() + output.attentions[1].square().sum()).backward()
        found.append((output.last_hidden_state, output.attentions))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-10)
    for our, their in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-10)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if gradients[name] is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-9)


def test_attention_weights_of_wavlm_are_returned_per_head():
    theirs = tiny_model("wavlm-group", attention="eager")
    ours = replace_attention(copy.deepcopy(theirs))
    waves = numbers(1, 9000, dtype=torch.float32)
    with torch.no_grad():
        our, their = (model(waves, output_attentions=True).attentions for model in (ours, theirs))
    assert len(our) == len(their) == 3
    for found, averaged in zip(our, their, strict=True):
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
        torch.testing.assert_close(found.mean(1), averaged[:, 0], rtol=1e-4, atol=1e-5)  # all that stock has
        assert (found[:, 0] - found[:, 1]).abs().max() > 1e-4


def test_wavlms_table_covers_all_of_its_buckets():
    block = replace_attention(tiny_model("wavlm-group")).encoder.layers[0].attention
    beyond = torch.arange(-40, 41)
    buckets = block._relative_positions_bucket(beyond)
    reach = FEW_BUCKETS["max_bucket_distance"]
    table = block.table()
    assert table.shape == (4, 2 * reach + 1)
    torch.testing.assert_close(table[:, beyond.clamp(-reach, reach) + reach], block.rel_attn_embed(buckets).T)


def test_our_layer_accepts_positions():
    layer = MultiHeadSelfAttention(H * D, H, dtype=torch.float64)
    x = numbers(B, T, H * D)
    positions = positions_of("gated", (2, 2))
    ours = layer(x, positions=positions)
    theirs = layer(x, attention_mask=as_bias(positions))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("positions", "told"),
    [
        (RelativePositions(left=2, table=numbers(H + 1, 5)), "table of relative positions must be"),
        (RelativePositions(left=2, table=numbers(H, 5), gate=numbers(B, T, H)), "gate of relative positions must be"),
        (RelativePositions(left=5, table=numbers(H, 5)), "left must be"),
        (RelativePositions(left=2, vectors=numbers(H, 5, D)), "either a table"),
    ],
)
def test_positions_of_another_shape_are_refused(positions, told):
    layer = MultiHeadSelfAttention(H * D, H, dtype=torch.float64)
    with pytest.raises(ValueError, match=told):
        layer(numbers(B, T, H * D), positions=positions)
