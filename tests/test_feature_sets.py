"""Features on disk: what is read is what was written, whatever the layout; what cannot be read is told by its name."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from w2v_attn import open_features
from w2v_attn.feature_files import write_features
from w2v_attn.feature_sets.dataset import pad_batch
from w2v_attn.feature_sets.errors import DamagedError, FeatureSetError, UnknownNameError

IDS = ["a.flac", "a.wav", "b c/é (1).wav", "b c/x", "b c/x/final.wav", "😀.ogg"]
# Primes; one recording of one frame.
FRAMES = [7, 1, 13, 5, 3, 11]
LAYERS = ("embed", "layer_02", "layer_10", "final")


def made(number, frames, layers=LAYERS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(number)
    features = {layer: torch.randn(frames, 5, generator=generator).to(dtype) for layer in layers}
    metadata = {
        "id": IDS[number],
        "format": "w2v_attn.features/1",
        "frame_rate": "50",
        "samples": str(400 + 320 * (frames - 1)),
        "layers": ",".join(layers),
        "flags": "",
        "dtype": str(dtype).removeprefix("torch."),
    }
    return features, metadata


@pytest.fixture
def corpus():
    """Id -> (features, metadata) of recordings with odd names and of different lengths."""
    return {id: made(number, frames) for number, (id, frames) in enumerate(zip(IDS, FRAMES, strict=True))}


@pytest.fixture
def mirrored(corpus, tmp_path):
    """A folder as extraction writes it."""
    folder = tmp_path / "mirrored"
    for id, (features, metadata) in corpus.items():
        write_features(folder / f"{id}.safetensors", features, metadata)
    return folder


def same_bits(ours, theirs):
    """Whether two tensors are of one type and shape, and equal to the bit, NaN and −0 included."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def check(found, corpus):
    """A feature set holds what a corpus is, all of it and nothing else."""
    assert sorted(found) == sorted(corpus)
    assert len(found) == len(corpus)
    for id, (features, metadata) in corpus.items():
        assert id in found
        assert found[id].layers == tuple(features)
        assert found.metadata(id) == metadata
        for layer, tensor in features.items():
            assert same_bits(found[id][layer], tensor)


def test_what_is_read_is_what_was_written(mirrored, corpus):
    check(open_features(mirrored), corpus)
    assert list(open_features(mirrored)) == sorted(corpus)


def test_what_extract_wrote_can_be_opened(call, tmp_path):
    assert call("extract", "layers=[layer_02,final]")[0] == 0
    found = open_features(tmp_path / "features")
    assert len(found) == 36
    recording = found["en-us+m5/00-three.flac"]
    assert recording.layers == ("layer_02", "final")
    times = recording.times("final")
    assert len(times) == len(recording["final"])
    duration = int(recording.metadata["samples"]) / 16_000
    assert times[0] == pytest.approx(200 / 16_000)
    assert duration - 0.04 < times[-1] < duration


def test_a_recordings_tensor_is_the_callers_own(mirrored, corpus):
    recording = open_features(mirrored)["a.wav"]
    recording["final"].zero_()
    assert torch.equal(recording["final"], corpus["a.wav"][0]["final"])


def test_an_unknown_name_is_told_with_those_that_are_like_it(mirrored):
    found = open_features(mirrored)
    with pytest.raises(UnknownNameError, match=r"no recording a\.wave .* did you mean a\.wav"):
        found["a.wave"]
    with pytest.raises(KeyError):
        found["a.wave"]
    with pytest.raises(UnknownNameError, match=r"no layer layer_03: it has embed, layer_02, layer_10, final"):
        found["a.wav"]["layer_03"]
    assert found.get("a.wave") is None


def test_a_damaged_file_is_named_and_the_others_are_read(mirrored):
    path = mirrored / "a.wav.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = open_features(mirrored)
    with pytest.raises(DamagedError, match=r"a\.wav\.safetensors"):
        found["a.wav"]["final"]
    assert len(found["a.flac"]["final"]) == 7


def test_folders_without_features_are_told(tmp_path):
    with pytest.raises(FeatureSetError, match="no folder"):
        open_features(tmp_path / "absent")
    with pytest.raises(FeatureSetError, match="no features"):
        open_features(tmp_path)


def test_frames_have_the_centres_of_their_windows(corpus, tmp_path):
    features, metadata = corpus["a.flac"]
    write_features(tmp_path / "x.safetensors", features, {**metadata, "frame_rates": '{"final": 50, "layer_02": 25}'})
    found = open_features(tmp_path)
    # Samples [320 t, 320 t + 400), and two such frames together.
    centres = [(320 * t + 200) / 16_000 for t in range(7)]
    torch.testing.assert_close(found.times("x", "final"), torch.tensor(centres, dtype=torch.float64))
    pairs = [(640 * t + (320 + 400) / 2) / 16_000 for t in range(7)]
    torch.testing.assert_close(found.times("x", "layer_02"), torch.tensor(pairs, dtype=torch.float64))
    write_features(tmp_path / "y.safetensors", features, {})
    with pytest.raises(FeatureSetError, match="frame_rate"):
        open_features(tmp_path).times("y", "final")


def test_a_dataset_serves_the_workers_of_a_dataloader(mirrored, corpus):
    found = open_features(mirrored)
    assert len(found["a.wav"]["final"]) == 1  # what is open here must not be shared with a worker
    dataset = found.as_dataset("layer_02", ids=IDS)
    id, tensor = pickle.loads(pickle.dumps(dataset))[2]  # as a worker that is spawned gets it
    assert torch.equal(tensor, corpus[id][0]["layer_02"])
    seen = []
    for ids, batch, lengths in DataLoader(dataset, 4, num_workers=2, collate_fn=pad_batch):
        for id, tensor, length in zip(ids, batch, lengths, strict=True):
            assert torch.equal(tensor[:length], corpus[id][0]["layer_02"])
            assert not tensor[length:].any()
            seen.append(id)
    assert seen == IDS
