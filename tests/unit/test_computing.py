"""What the encoder gives, made ready to be written: apart, finite, and without copies that nobody needs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_attn.audio.read_audio import Recording
from w2v_attn.benchmarks.measurement import peak_bytes
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction.computing import compute_features
from w2v_attn.features.transform import cast

ROW = Row("a.wav", Path("a.wav"))
RECORDING = Recording(torch.zeros(16_000), 16_000, 16_000, 1, ())
PRODUCT = SimpleNamespace(layers=("layer_01", "final"), transform=lambda row_id, features: features)


def made_of(*found):
    """What becomes of what an encoder gives for each recording."""
    encoder = SimpleNamespace(extract=lambda waveforms, layers: [features() for features in found])
    return compute_features(encoder, PRODUCT, [(ROW, RECORDING)] * len(found))


def test_features_have_memory_of_their_own():
    batch = torch.randn(5, 3)
    last = torch.randn(4, 3)
    one, other, both = made_of(
        lambda: {"final": batch[:2]}, lambda: {"final": batch[2:]}, lambda: {"layer_01": last, "final": last}
    )
    tensors = [one["final"], other["final"], *both.values()]
    for tensor, expected in zip(tensors, (batch[:2], batch[2:], last, last), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert len({tensor.data_ptr() for tensor in tensors}) == 4


@settings(deadline=None)
@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    place=st.integers(0, 4998),
    layer=st.sampled_from(["layer_01", "final"]),
)
def test_a_value_that_is_not_finite_is_found_wherever_it_is(dtype, value, place, layer):
    features = {name: torch.linspace(-3, 3, 4999).to(dtype).view(-1, 1) for name in ("layer_01", "final")}
    (fine,) = made_of(lambda: features)
    assert fine.keys() == features.keys()
    features[layer].view(-1)[place] = value
    (refused,) = made_of(lambda: features)
    assert isinstance(refused, ValueError)
    assert "not finite" in str(refused)


def features():
    return {"final": torch.ones(60_000, 768)}


@pytest.mark.parametrize(
    ("call", "held"),
    [(lambda: made_of(features), 1.0), (lambda: cast(features()["final"], torch.float16, "final"), 1.5)],
    ids=["as it is", "in half precision"],
)
def test_an_hour_is_held_once(call, held):
    size = features()["final"].nbytes
    peak = peak_bytes(call, torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not tell what memory a call takes")
    assert (held - 0.5) * size < peak < (held + 0.25) * size
