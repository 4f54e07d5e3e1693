"""Convolutions as one product with windows: stock's, forward and backward, on either library of products."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from w2v_attn.ops import gemm
from w2v_attn.ops.strided import StridedConvolution, im2col

pytestmark = pytest.mark.usefixtures("maker")


def drawn(T, taps, I, O, dtype=torch.float64):  # noqa: E741
    generator = torch.Generator().manual_seed(T)
    shapes = ((T, I), (O, I, taps), (O,))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 11), st.integers(1, 6), st.integers(0, 9), st.integers(1, 5), st.integers(1, 7), st.booleans())
def test_it_is_stocks_convolution_with_its_gradients(taps, stride, more, I, O, has_bias):  # noqa: E741
    x, weight, bias = drawn(taps + more, taps, I, O)
    bias = bias if has_bias else None
    leaves = [x, weight] if bias is None else [x, weight, bias]
    ours = StridedConvolution.apply(x, weight, bias, stride)
    theirs = F.conv1d(x.T[None], weight, bias, stride=stride)[0].T
    assert torch.allclose(ours, theirs, atol=1e-12)
    dy = torch.randn_like(theirs)
    for found, expected in zip(*(torch.autograd.grad(side, leaves, dy) for side in (ours, theirs)), strict=True):
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (2, 2), (10, 5), (7, 3), (1, 1), (2, 3)])
def test_its_gradients_are_the_finite_differences(taps, stride):
    assert gradcheck(lambda *leaves: StridedConvolution.apply(*leaves, stride), drawn(23, taps, 3, 5))


@pytest.mark.parametrize(("wanted", "products_of"), [(0, "dx"), (1, "dw"), (2, "")])
def test_a_gradient_that_nobody_asks_for_is_not_computed(wanted, products_of, monkeypatch):
    leaves = [leaf if number == wanted else leaf.detach() for number, leaf in enumerate(drawn(23, 3, 3, 5))]
    y = StridedConvolution.apply(*leaves, 2)
    computed = []
    for name, gradient in (("linear", "dw"), ("add_linear", "dx")):
        step = getattr(gemm, name)
        monkeypatch.setattr(gemm, name, lambda *a, s=step, g=gradient: computed.append(g) or s(*a))
    y.sum().backward()
    assert set(computed) == ({products_of} - {""})


def test_gradients_in_any_layout_are_taken():
    """A sum's is one number for all, a transposition's lies across."""
    leaves = drawn(1201, 3, 128, 96, torch.float32)
    for end in (lambda y: y.sum(), lambda y: y.T.contiguous().square().sum(), lambda y: y[::2, :50].square().sum()):
        ours = torch.autograd.grad(end(StridedConvolution.apply(*leaves, 2)), leaves)
        theirs = torch.autograd.grad(end(F.conv1d(leaves[0].T[None], *leaves[1:], stride=2)[0].T), leaves)
        for found, expected in zip(ours, theirs, strict=True):
            assert (found - expected).norm() < 1e-5 * expected.norm()


def test_frames_that_do_not_lie_side_by_side_are_refused():
    with pytest.raises(AssertionError):
        im2col(torch.randn(3, 20).T, 3, 2)


def test_large_ones_are_as_right_as_stocks():
    """Products of this size are those of a library, not of a few loops."""
    leaves = drawn(1201, 3, 128, 96, torch.float32)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]

    def stocks(x, weight, bias):
        return F.conv1d(x.T[None], weight, bias, stride=2)[0].T

    y = StridedConvolution.apply(*leaves, 2)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, leaves, dy)
    theirs = torch.autograd.grad(stocks(*leaves), leaves, dy)
    reference = torch.autograd.grad(stocks(*exact), exact, dy.double())
    for found, stock, right in zip(ours, theirs, reference, strict=True):
        assert (found - right).norm() <= 2 * (stock - right).norm() + 1e-6 * right.norm()


def test_windows_are_a_view():
    frames = torch.arange(12.0).view(6, 2)
    windows = im2col(frames, 3, 2)
    assert windows.tolist() == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]]
    assert windows.data_ptr() == frames.data_ptr()
