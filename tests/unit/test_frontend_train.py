"""Differentiable convolutions over packed recordings equal stock's over each recording alone, forward and backward."""

import copy

import pytest
import torch
from conftest import FAMILIES, tiny_model

from w2v_attn.encoder import packed_waveforms
from w2v_attn.encoder.frontend import unsupported_reason
from w2v_attn.encoder.frontend_train import TrainableConvolutions

LENGTHS = (9000, 400, 4321, 719, 6789)  # samples; one frame in two of them
TRAINABLE = [name for name in FAMILIES if unsupported_reason(tiny_model(name)) is None]


def waveforms(dtype):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(n, generator=generator, dtype=dtype) + 0.3 for n in LENGTHS]


def gradients(frames, extractor, dy):
    extractor.zero_grad()
    (frames * dy).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in extractor.named_parameters()}


def alone(extractor, waves):
    return torch.cat([extractor(wave[None])[0].T for wave in waves])


@pytest.mark.parametrize("family", TRAINABLE)
@pytest.mark.parametrize("conv_bias", [False, True])
def test_frames_and_gradients_equal_stocks_over_each_recording_alone(family, conv_bias):
    extractor = tiny_model(family, conv_bias=conv_bias).double().feature_extractor
    waves = waveforms(torch.float64)
    ours, theirs = TrainableConvolutions(extractor)(waves), alone(extractor, waves)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-9)
    dy = torch.randn_like(theirs)
    found, expected = gradients(ours, extractor, dy), gradients(theirs, extractor, dy)
    for name in expected:
        assert (found[name] - expected[name]).norm() < 1e-8 * (1 + expected[name].norm()), name


def test_in_single_precision_the_error_is_that_of_stock(norm_style, maker):
    stock = tiny_model(norm_style, conv_dim=(64,) * 7).feature_extractor  # its products are a library's
    exact = copy.deepcopy(stock).double()
    waves, right = waveforms(torch.float32), waveforms(torch.float64)
    dy = torch.randn_like(alone(exact, right))
    reference = gradients(alone(exact, right), exact, dy)
    ours = gradients(TrainableConvolutions(stock)(waves), stock, dy.float())
    theirs = gradients(alone(stock, waves), stock, dy.float())
    for name, expected in reference.items():
        ours_off, theirs_off = ((side[name] - expected).norm() for side in (ours, theirs))
        assert ours_off <= 2 * theirs_off + 1e-5 * expected.norm(), name


def test_the_tile_size_does_not_change_results(norm_style, monkeypatch):
    extractor = tiny_model(norm_style).double().feature_extractor
    waves = waveforms(torch.float64)
    whole = TrainableConvolutions(extractor)(waves)
    dy = torch.randn_like(whole)
    expected = gradients(whole, extractor, dy)
    monkeypatch.setattr(packed_waveforms, "BLOCKS_PER_TILE", 2)
    tiles = TrainableConvolutions(extractor)(waves)
    assert torch.allclose(tiles, whole, atol=1e-12)
    found = gradients(tiles, extractor, dy)
    assert all(torch.allclose(found[name], expected[name], atol=1e-9) for name in expected)


def test_gradients_are_the_same_to_the_bit_each_time(norm_style):
    """Even with several threads: a resumed run must end with the same bits."""
    extractor = tiny_model(norm_style, conv_dim=(128,) * 7).feature_extractor
    waves = [0.1 * torch.randn(n) for n in (80_000, 48_000)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        frames = TrainableConvolutions(extractor)
        first, *others = (gradients(frames(waves), extractor, 1.0) for _ in range(4))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
