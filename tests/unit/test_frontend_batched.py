"""The convolutions over a batch of recordings, as on accelerators, equal the convolutions over each recording alone."""

import pytest
import torch
from conftest import CONFORMERS, FAMILIES, large_table, save, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from w2v_attn import load_encoder
from w2v_attn.encoder import frontend_batched, packed_waveforms
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.frontend import Convolutions, fold_group_norm
from w2v_attn.encoder.frontend_batched import BatchedConvolutions
from w2v_attn.encoder.inputs import standardize, standardize_batch
from w2v_attn.training.unpadded_frontend import patch_frontend, set_lengths

HOP, FIELD = 320, 400
SLOT = packed_waveforms.FRAMES_PER_BLOCK * HOP
# The shortest; one sample around two frames, a slot, a slot whose last frame sees to its end, and two slots; long ones.
LENGTHS = [400, 719, 720, 721, SLOT - 1, SLOT, SLOT + 1, SLOT + 79, SLOT + 80, SLOT + 81, 2 * SLOT + 1, 40_009]
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}


def noise(lengths, dtype=torch.float32):
    return [torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in lengths]


@torch.no_grad()
def alone(model, wave):
    return torch.cat(list(Convolutions(model.feature_extractor)(wave)))


@torch.no_grad()
def batched(model, waves):
    """Return the frames of each recording."""
    counts = [(len(wave) - FIELD) // HOP + 1 for wave in waves]
    return torch.cat(list(BatchedConvolutions(model.feature_extractor)(waves))).split(counts)


def assert_each_is_what_it_is_alone(model, waves):
    for wave, ours in zip(waves, batched(model, waves), strict=True):
        theirs = alone(model, wave)
        bound = BOUNDS[theirs.dtype] * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


@pytest.fixture(params=BOUNDS, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def tiles_of(monkeypatch):
    return lambda blocks: monkeypatch.setattr(packed_waveforms, "BLOCKS_PER_TILE", blocks)


@pytest.mark.parametrize(("family", "tile"), large_table(FAMILIES, [512, 3, 1]))
def test_frames_of_a_batch_equal_those_of_each_recording_alone(family, dtype, tile, tiles_of):
    tiles_of(tile)
    assert_each_is_what_it_is_alone(tiny_model(family).to(dtype), noise(LENGTHS, dtype))


@pytest.mark.parametrize("family", large_table(FAMILIES))
def test_frames_of_a_batch_of_speech_equal_those_of_each_recording_alone(family, speech, tiles_of):
    tiles_of(7)
    assert_each_is_what_it_is_alone(tiny_model(family), [standardize(wave) for wave in speech])


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(
        st.one_of(
            st.integers(FIELD, 9000),
            st.builds(lambda slots, more: slots * SLOT + more, st.integers(1, 3), st.integers(-90, 90)),
        ),
        min_size=1,
        max_size=6,
    ),
    tile=st.integers(1, 5),
)
def test_frames_of_any_lengths_in_any_tiles_equal_those_of_each_recording_alone(lengths, tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_waveforms, "BLOCKS_PER_TILE", tile)
        for family in ("wav2vec2-group", "wav2vec2-layer"):
            assert_each_is_what_it_is_alone(tiny_model(family).double(), noise(lengths, torch.float64))


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e30])
def test_a_recording_does_not_affect_its_neighbours(norm_style, fill, tiles_of):
    tiles_of(2)
    model, waves = tiny_model(norm_style), noise(LENGTHS)
    before = batched(model, waves)
    for wave in waves[1::2]:
        wave.fill_(fill)
    for ours, theirs in list(zip(batched(model, waves), before, strict=True))[::2]:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_convolutions_with_receptive_fields_beyond_a_block_are_exact(monkeypatch, norm_style, tiles_of):
    monkeypatch.setattr(packed_waveforms, "FRAMES_PER_BLOCK", 1)
    tiles_of(2)
    model = tiny_model(norm_style, conv_kernel=(10, 3, 3, 3, 3, 2, 7)).double()
    waves = noise([2000, 2010, 9001], torch.float64)
    ours = torch.cat(list(BatchedConvolutions(model.feature_extractor)(waves)))
    torch.testing.assert_close(ours, torch.cat([alone(model, wave) for wave in waves]), rtol=0, atol=1e-10)


def test_an_offset_does_not_reduce_the_precision_of_the_moments():
    grid = packed_waveforms.Grid.of([(10, 5), (64, 64)])
    (quiet,) = noise([40_009], torch.float64)
    whole = packed_waveforms.window_moments(packed_waveforms.PackedWaveforms.of([1e-3 * quiet + 7.0, quiet], grid))
    windows = (1e-3 * quiet).unfold(0, 10, 5)
    torch.testing.assert_close(whole[0][0], windows.mean(0) + 7.0, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole[1][0], windows.T.cov(correction=0), rtol=1e-9, atol=0)


def test_a_wrong_moment_is_detected(monkeypatch):
    def slightly_wrong(mean, moment, *modules):
        return fold_group_norm(mean, 1.001 * moment, *modules)

    model, waves = tiny_model("wav2vec2-group"), noise(LENGTHS)
    monkeypatch.setattr("w2v_attn.encoder.frontend_batched.fold_group_norm", slightly_wrong)
    with pytest.raises(AssertionError):
        assert_each_is_what_it_is_alone(model, waves)


class Launches(TorchDispatchMode):
    """Counts operations other than views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_launches_do_not_grow_with_the_recordings(norm_style):
    def launches(lengths):
        waves = noise(lengths)
        with Launches() as counted:
            list(ours(standardize_batch(waves)))
        return counted.count

    ours = BatchedConvolutions(tiny_model(norm_style).feature_extractor)
    list(ours(noise([400])))  # prepares the weights
    assert launches([9000] * 30) == launches([9000, 4000])


@torch.no_grad()
def test_changed_weights_are_used_after_refresh(norm_style):
    model, waves = tiny_model(norm_style), noise([400, 9000])
    ours = BatchedConvolutions(model.feature_extractor)
    before = torch.cat(list(ours(waves)))
    for parameter in model.feature_extractor.parameters():
        parameter.mul_(1.1)
    ours.refresh()
    after = torch.cat(list(ours(waves)))
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, torch.cat([alone(model, wave) for wave in waves]), rtol=0, atol=1e-5)


def test_a_batch_of_waveforms_is_standardised_as_each_alone(dtype, tiles_of):
    tiles_of(2)
    waves = [3.0 * wave + 5.0 for wave in noise([*LENGTHS, 8191, 8192, 8193], dtype)]
    waves[3].fill_(float("nan"))
    waves[4].fill_(0.25)
    for wave, ours in zip(waves, standardize_batch(waves), strict=True):
        torch.testing.assert_close(ours, standardize(wave), rtol=0, atol=1e-6, equal_nan=True)


def forbidden(*_):
    raise AssertionError("one by one")


@pytest.mark.parametrize("family", large_table(family for family in FAMILIES if family not in CONFORMERS))
def test_features_are_the_same_where_recordings_are_batched(family, tmp_path, monkeypatch, speech):
    folder = save(tiny_model(family), tmp_path / family)
    waves, layers = [*speech, *noise([720, 9000])], ("embed", "layer_02", "final")
    one_by_one = load_encoder(folder).extract(waves, layers)
    monkeypatch.setattr(frontend_batched, "is_batching_faster", lambda device: True)
    encoder = load_encoder(folder)
    monkeypatch.setattr(Convolutions, "__call__", forbidden)
    monkeypatch.setattr(Encoder, "prepare", forbidden)
    for ours, theirs in zip(encoder.extract(waves, layers), one_by_one, strict=True):
        for layer in layers:
            torch.testing.assert_close(ours[layer], theirs[layer], rtol=0, atol=1e-5)


def test_frozen_convolutions_in_training_are_the_same_where_recordings_are_batched(norm_style, monkeypatch):
    model = tiny_model(norm_style).train().requires_grad_(False)
    patch_frontend(model)
    waves = noise([400, 9000, 2801])
    set_lengths(model, [len(wave) for wave in waves])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    one_by_one = model.feature_extractor(batch)
    monkeypatch.setattr(frontend_batched, "is_batching_faster", lambda device: True)
    monkeypatch.setattr(Convolutions, "__call__", forbidden)
    torch.testing.assert_close(model.feature_extractor(batch), one_by_one, rtol=0, atol=1e-5)
