"""Features of packed recordings do not depend on the other recordings, the length, or the way of computing."""

import itertools
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from conftest import ALL_FAMILIES, CONFORMERS, SPEECH, save, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2v_attn import load_encoder
from w2v_attn.encoder import blocks, cpu_parallel, encoder, frontend, ragged
from w2v_attn.encoder.inputs import Samples
from w2v_attn.encoder.long_form import LongForm, batch_by_frames
from w2v_attn.ops import gemm, winograd


def stock(folder, wave):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
    with torch.no_grad():
        return model(wave[None]).last_hidden_state[0]


def noise(*seconds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(int(16_000 * length), generator=generator) for length in seconds]


@pytest.fixture(params=["wav2vec2-group", "wav2vec2-layer"])
def folder(request, tmp_path_factory):
    return save(tiny_model(request.param), tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", [name for name in ALL_FAMILIES if name not in CONFORMERS])
def test_recordings_of_every_family_are_packed(name, tmp_path):
    assert load_encoder(save(tiny_model(name), tmp_path / name)).unpacked_reason is None


@pytest.mark.parametrize("name", CONFORMERS)
def test_recordings_of_conformers_are_processed_one_by_one(name, tmp_path):
    assert (
        "not attention and feed-forward alone" in load_encoder(save(tiny_model(name), tmp_path / name)).unpacked_reason
    )


@settings(max_examples=15, deadline=None)
@given(samples=st.lists(st.integers(400, 9000), min_size=1, max_size=6), budget=st.sampled_from([1, 20, 800]))
def test_features_of_any_recordings_in_any_packs_are_those_of_each_alone(samples, budget, shared_encoder):
    waves = [0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in samples]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "CPU_FRAMES", budget)
        packed = shared_encoder.extract(waves, ("layer_01", "final"))
    for wave, ours in zip(waves, packed, strict=True):
        for name, alone in shared_encoder.extract([wave], ("layer_01", "final"))[0].items():
            torch.testing.assert_close(ours[name], alone, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def shared_encoder(tmp_path_factory):
    return load_encoder(save(tiny_model("wav2vec2-group"), tmp_path_factory.mktemp("shared")))


@pytest.mark.parametrize(("block", "wide_block"), [(7, 800), (200, 6), (7, 6), (1, 2)])
def test_the_block_size_does_not_change_features(folder, block, wide_block, maker, monkeypatch):
    (wave,) = noise(2.1)
    whole = load_encoder(folder).extract([wave])[0]["final"]
    monkeypatch.setattr(frontend, "CPU_BLOCK", block)
    monkeypatch.setattr(frontend, "WIDE_BLOCK", wide_block)
    monkeypatch.setattr(frontend, "MOMENT_WINDOWS", 100)
    torch.testing.assert_close(load_encoder(folder).extract([wave])[0]["final"], whole, rtol=0, atol=1e-5)


def test_a_long_recording_is_exact(folder, maker, monkeypatch):
    from w2v_attn.attention import packed as core

    monkeypatch.setattr(blocks, "LONG_THRESHOLD", 13)
    monkeypatch.setattr(blocks, "LONG_ROWS", 13)
    monkeypatch.setattr(core, "TILE_ROWS", 5)
    monkeypatch.setattr(core, "TILE_KEYS", 17)
    long, short = noise(2.1, 0.2)
    ours = load_encoder(folder).extract([short, long], ("layer_02", "final"))
    for wave, features in zip((short, long), ours, strict=True):
        torch.testing.assert_close(features["final"], stock(folder, wave), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "long_form",
    [LongForm(), LongForm(kind="sliding_window", seconds=0.4), LongForm(kind="chunked", seconds=1.0, overlap=0.2)],
)
@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer", "wavlm-group", "wavlm-layer", "omniasr"])
def test_layers_of_a_long_recording_do_not_depend_on_other_requested_layers(family, long_form, tmp_path, monkeypatch):
    """Blocks overwrite frames that are not needed any more."""
    monkeypatch.setattr(blocks, "LONG_THRESHOLD", 13)
    monkeypatch.setattr(blocks, "LONG_ROWS", 13)
    encoder = load_encoder(save(tiny_model(family), tmp_path / "model"), long_form=long_form)
    (wave,) = noise(2.1)
    layers = ("embed", "layer_01", "layer_02", "layer_03", "final")
    (found,) = encoder.extract([wave], layers)
    for layer in layers:
        torch.testing.assert_close(encoder.extract([wave], (layer,))[0][layer], found[layer], rtol=0, atol=0)


def test_a_long_recording_overwrites_layers_that_are_not_requested(folder, monkeypatch):
    monkeypatch.setattr(blocks, "LONG_THRESHOLD", 13)
    in_place, original = [], blocks.TransformerBlock._run_chunked
    monkeypatch.setattr(
        blocks.TransformerBlock,
        "_run_chunked",
        lambda self, x, y: in_place.append(x is y) or original(self, x, y),
    )
    (wave,) = noise(2.1)
    load_encoder(folder).extract([wave], ("layer_01", "final"))
    assert in_place == [True, False, True]


def test_rows_of_a_long_recording_are_attention_by_the_faster_kernel(maker, monkeypatch):
    from w2v_attn.attention import packed as core

    in_tiles = Mock(wraps=core._attend_keys)
    monkeypatch.setattr(core, "_attend_keys", in_tiles)
    torch.manual_seed(0)
    q, k, v = torch.randn(50, 3 * 16), torch.randn(3, 90, 16), torch.randn(3, 90, 16)
    ours = core.attend_all(q, k, v, num_heads=3, scale=0.3)
    theirs = F.scaled_dot_product_attention(core.split_heads(q[None], 3), k[None], v[None], scale=0.3)
    torch.testing.assert_close(ours, core.merge_heads(theirs)[0], rtol=0, atol=1e-5)
    assert in_tiles.called == (maker != "MKL's")


def test_a_short_recording_in_a_batch_with_a_windowed_one_is_exact(folder):
    short, long = noise(0.35, 2.0)
    windowed = load_encoder(folder, long_form=LongForm(kind="sliding_window", seconds=0.4)).extract([short, long])
    torch.testing.assert_close(windowed[0]["final"], stock(folder, short), rtol=0, atol=1e-4)


def test_a_window_wider_than_the_recording_is_exact(folder):
    waves = noise(0.9, 0.4)
    exact = load_encoder(folder).extract(waves)
    windowed = load_encoder(folder, long_form=LongForm(kind="sliding_window", seconds=2.0)).extract(waves)
    for ours, theirs in zip(windowed, exact, strict=True):
        torch.testing.assert_close(ours["final"], theirs["final"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [5, 13, 2000])
@pytest.mark.parametrize("tile", [4, 256])
def test_a_window_is_attention_under_a_band(folder, monkeypatch, rows, tile):
    """Our layer returns the same features with a mask that excludes frames outside the window."""
    from w2v_attn.attention import packed as core

    monkeypatch.setattr(blocks, "LONG_ROWS", rows)
    monkeypatch.setattr(core, "WINDOW_ROWS", tile)
    (wave,) = noise(2.0)
    options = LongForm(kind="sliding_window", seconds=0.4)  # 10 frames on either side
    windowed = load_encoder(folder, long_form=options).extract([wave], ("embed", "layer_01"))[0]
    exact = load_encoder(folder)
    embed = exact.extract([wave], ("embed",))[0]["embed"]
    torch.testing.assert_close(windowed["embed"], embed, rtol=0, atol=1e-6)
    frames = torch.arange(len(embed))
    near = (frames[:, None] - frames).abs() <= 10
    with torch.no_grad():
        layer = exact.model.encoder.layers[0]
        theirs = layer(embed[None], attention_mask=near[None, None])
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs[0]
    torch.testing.assert_close(windowed["layer_01"], theirs[0], rtol=0, atol=1e-5)


def test_chunks_keep_every_frame_once_and_a_single_chunk_is_exact(folder):
    waves = noise(0.3, 2.3, 0.9)
    exact = load_encoder(folder).extract(waves, ("embed", "final"))
    ours = load_encoder(folder, long_form=LongForm(kind="chunked", seconds=1.0, overlap=0.2)).extract(
        waves, ("embed", "final")
    )
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine["embed"], theirs["embed"], rtol=0, atol=1e-6)
        assert mine["final"].shape == theirs["final"].shape
    for number in (0, 2):
        torch.testing.assert_close(ours[number]["final"], exact[number]["final"], rtol=0, atol=1e-5)
    assert (ours[1]["final"] - exact[1]["final"]).abs().max() > 1e-6


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    seconds=st.floats(0.1, 3.0),
    share=st.floats(0.0, 0.49),
    frames=st.integers(1, 400),
)
def test_chunks_cover_each_recording_without_gaps(lengths, seconds, share, frames):
    chunks = list(LongForm(kind="chunked", seconds=seconds, overlap=share * seconds).chunks(lengths, 50.0))
    assert [p.first for p in chunks] == [0, *(p.last for p in chunks[:-1])]
    assert chunks[-1].last == sum(lengths)
    assert all(p.begin <= p.first < p.last <= p.end for p in chunks)
    edges = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert all(any(a <= p.begin and p.end <= b for a, b in itertools.pairwise(edges)) for p in chunks)
    assert [chunk for batch in batch_by_frames(chunks, lambda p: p.end - p.begin, frames) for chunk in batch] == chunks


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "short"}, "full, sliding_window, chunked"),
        ({"kind": "sliding_window", "seconds": 0}, "above 0"),
        ({"kind": "chunked", "seconds": 4, "overlap": 2}, "less than half"),
    ],
)
def test_options_that_leave_nothing_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        LongForm(**options)


def test_nothing_above_the_highest_layer_is_computed(folder, monkeypatch):
    ran = []
    right = blocks.TransformerBlock.__call__
    monkeypatch.setattr(
        blocks.TransformerBlock, "__call__", lambda self, *a, **k: ran.append(self) or right(self, *a, **k)
    )
    ours = load_encoder(folder)
    ours.extract(noise(0.2), ("embed",))
    assert not ran
    ours.extract(noise(0.2), ("embed", "layer_02"))
    assert len(ran) == 2


def test_changed_weights_are_used(folder, tmp_path):
    (wave,) = noise(0.5)
    ours = load_encoder(folder)
    before = ours.extract([wave])[0]["final"]
    with torch.no_grad():
        for parameter in ours.model.parameters():
            parameter.mul_(1.1)
    after = ours.extract([wave])[0]["final"]
    assert (after - before).abs().max() > 1e-3
    changed = save(ours.model, tmp_path / "changed")
    torch.testing.assert_close(after, stock(changed, wave), rtol=0, atol=1e-4)


def test_without_onednn_the_features_are_the_same(folder, monkeypatch):
    waves = noise(0.7, 1.1)
    with_it = load_encoder(folder).extract(waves)
    monkeypatch.setattr(gemm, "prefers_onednn", lambda x: False)
    without = load_encoder(folder).extract(waves)
    for ours, theirs in zip(without, with_it, strict=True):
        torch.testing.assert_close(ours["final"], theirs["final"], rtol=0, atol=1e-5)


def test_recordings_of_a_changed_model_are_processed_one_by_one(folder):
    (wave,) = noise(0.5)
    plain = load_encoder(folder)
    theirs = plain.extract([wave])[0]["final"]
    seen = []
    hook = plain.model.encoder.layers[1].register_forward_hook(lambda *_: seen.append(1))
    assert "hooks" in plain.unpacked_reason
    torch.testing.assert_close(plain.extract([wave])[0]["final"], theirs, rtol=0, atol=1e-5)
    assert seen
    with pytest.raises(ValueError, match="hooks"):
        encoder.Encoder(plain.checkpoint, device=plain.device, long_form=LongForm(kind="sliding_window"))
    hook.remove()
    assert plain.unpacked_reason is None
    dense = plain.model.encoder.layers[0].feed_forward.output_dense
    dense.forward = lambda x: 2 * torch.nn.functional.linear(x, dense.weight, dense.bias)
    assert "another forward" in ragged.unsupported_reason(plain.model)
    assert (plain.extract([wave])[0]["final"] - theirs).abs().max() > 1e-3


def test_an_offset_of_the_waveform_does_not_reduce_precision(folder):
    """Group norm subtracts the mean; folded into weights, it must not lose small samples next to a large offset."""
    from transformers import AutoModel

    if "group" not in str(AutoModel.from_pretrained(folder).config.feat_extract_norm):
        pytest.skip("layer norm")
    quiet = noise(0.6)[0] * 0.01
    ours = load_encoder(folder)
    ours.input = Samples(ours.config, do_normalize=False)
    model = AutoModel.from_pretrained(folder).eval().double()
    wave = (quiet + 0.5).float()
    with torch.no_grad():
        exact = model(wave.double()[None]).last_hidden_state[0]
        theirs = model.float()(wave[None]).last_hidden_state[0]
    error = (ours.extract([wave])[0]["final"].double() - exact).abs().max()
    assert error <= max(2 * (theirs.double() - exact).abs().max(), 1e-5)


def test_the_expected_time_grows_with_the_work(folder):
    exact, windowed = load_encoder(folder), load_encoder(folder, long_form=LongForm(kind="sliding_window", seconds=10))
    minute, hour = 60 * 16_000, 3600 * 16_000
    assert exact.expected_seconds(hour) > 60 * exact.expected_seconds(minute)
    assert windowed.expected_seconds(hour) < exact.expected_seconds(hour)
    assert exact.expected_seconds(minute, ("embed",)) < exact.expected_seconds(minute, ("layer_02",))
    assert exact.expected_seconds(minute, ("layer_02",)) < exact.expected_seconds(minute)


def test_a_long_recording_is_logged_with_its_expected_time(folder, monkeypatch, caplog, tmp_path):
    from w2v_attn.corpus.listing import list_recordings
    from w2v_attn.extraction import computing, extracting

    monkeypatch.setattr(computing, "LONG_RECORDING", 0.1)
    monkeypatch.setattr(computing, "LONG_WAIT", 0.0)
    clip = sorted((SPEECH).rglob("*.flac"))[0]
    list(
        extracting.extract_corpus(
            load_encoder(folder), list_recordings(str(clip)).rows, tmp_path, layers=("final",), max_duration=60
        )
    )
    assert "minutes of audio will take about" in caplog.text
    assert "long_form=sliding_window" in caplog.text


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("frames", [128, 173, 211, 400, 511])
def test_one_call_for_all_heads_is_attention(frames, dtype, bound, monkeypatch):
    from w2v_attn.attention import packed as core
    from w2v_attn.attention.backends import select
    from w2v_attn.attention.masks import NO_MASK

    torch.manual_seed(frames)
    q, k, v = (core.split_heads(torch.randn(1, frames, 96).to(dtype), 3) for _ in range(3))
    monkeypatch.setattr(gemm, "_is_made_by_intel", lambda: False)
    if not core._short(q, v):
        pytest.skip("no oneDNN here")
    theirs, _, _ = select.TILED.forward(q.double(), k.double(), v.double(), NO_MASK, scale=0.3, dropout=0.0)
    ours = core._all_heads(q, k, v, 0.3, None)
    torch.testing.assert_close(ours.double(), core.merge_heads(theirs)[0], rtol=0, atol=bound)
    alone = core.attend_packed(*(core.merge_heads(x)[0] for x in (q, k, v)), [frames], num_heads=3, scale=0.3)
    torch.testing.assert_close(alone, ours, rtol=0, atol=0)


@given(lengths=st.lists(st.integers(1, 6000), max_size=40), workers=st.integers(1, 5), budget=st.integers(1, 900))
def test_packs_hold_every_recording_once_and_workers_end_at_about_the_same_time(lengths, workers, budget):
    alone, shared = cpu_parallel.plan(lengths, workers=workers, budget=budget, longest=5000)
    assert sorted(number for pack in [*alone, *shared] for number in pack) == list(range(len(lengths)))
    assert all([*alone, *shared])
    sizes = sorted((sum(lengths[number] for number in pack) for pack in shared), reverse=True)
    assert all(lengths[number] <= 5000 for pack in shared for number in pack)
    ends = [0] * workers
    for size in sizes:
        ends[ends.index(min(ends))] += size
    assert max(ends) <= 1.06 * sum(sizes) / workers


@given(seed=st.integers(0, 9999), count=st.integers(130, 300), speed=st.floats(0.6, 1.0))
def test_a_slow_core_keeps_the_other_waiting_for_a_small_pack_only(seed, count, speed):
    lengths = torch.randint(1, 100, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    _, shared = cpu_parallel.plan(lengths, workers=2, budget=800, longest=5000)
    speeds, ends = (1.0, speed), [0.0, 0.0]
    for size in (sum(lengths[number] for number in pack) for pack in shared):
        free = ends.index(min(ends))
        ends[free] += size / speeds[free]
    assert max(ends) - sum(lengths) / sum(speeds) <= (800 / 3 + 100) / speed


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_recording_is_the_same_in_any_number_of_workers(threads, shared_encoder):
    waves = noise(*(0.4 + 0.3 * number for number in range(12)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed = shared_encoder.extract(waves, ("embed", "final"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for wave, ours in zip(waves, packed, strict=True):
        for name, alone in shared_encoder.extract([wave], ("embed", "final"))[0].items():
            torch.testing.assert_close(ours[name], alone, rtol=0, atol=1e-5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(7, 41),
    channels=st.sampled_from([1, 17, 32, 300]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_winograds_algorithm_equals_the_convolution(frames, channels, dtype, seed, maker):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(19, channels, 3, generator=generator, dtype=torch.float64) / channels**0.5
    bias = torch.randn(19, generator=generator, dtype=torch.float64)
    found = winograd.Winograd(weight.to(dtype), bias.to(dtype))(x.to(dtype))
    expected = torch.nn.functional.conv1d(x.T, weight, bias, stride=2).T
    bound = 1e-5 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), expected[: len(found)], rtol=bound, atol=bound)


@given(count=st.integers(1, 99))
def test_winograds_algorithm_returns_the_requested_number_of_frames(count):
    products_ = winograd.Winograd(torch.ones(1, 1, 3), None)
    frames = torch.ones(products_.frames_needed(count), 1)
    assert count <= len(products_(frames)) < count + 3
    assert len(frames) == 7 or len(products_(frames[:-1])) < count


def test_winograds_algorithm_sums_over_blocks_of_channels(maker):
    """oneDNN's over 512 channels have 3.1 times the error of torch's convolution: `embed` then breaks its bound."""
    torch.manual_seed(0)
    x, weight = torch.nn.functional.gelu(torch.randn(1, 512, 205)), torch.randn(64, 512, 3)
    exact = torch.nn.functional.conv1d(x.double(), weight.double(), stride=2)[0].T
    theirs = torch.nn.functional.conv1d(x, weight, stride=2)[0].T
    ours = winograd.Winograd(weight, None)(x[0].T.contiguous())
    assert (ours - exact).norm() <= 2.5 * (theirs - exact).norm()


def test_an_error_in_a_worker_is_raised_by_the_call(shared_encoder, monkeypatch):
    def out_of_memory(self, *_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(ragged.RaggedEncoder, "run", out_of_memory)
    with pytest.raises(MemoryError, match="no room"):
        shared_encoder.extract(noise(*[0.5] * 8))
