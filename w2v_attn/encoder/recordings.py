"""Recordings as people hold them (arrays, paths, dictionaries of data sets, decoders) as waveforms for a model."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

# dtype of integer samples -> (the sample of silence, the samples of full scale).
INTEGERS = {
    torch.int8: (0, 2.0**7),
    torch.uint8: (128, 2.0**7),
    torch.int16: (0, 2.0**15),
    torch.int32: (0, 2.0**31),
}
MAX_CHANNELS = 64


def is_single(recordings: object) -> bool:
    """Return whether this is one recording, not several: an array, path, dictionary, decoder or (samples, rate)."""
    if isinstance(recordings, Tensor | np.ndarray | str | bytes | os.PathLike | Mapping) or _is_pair(recordings):
        return True
    if isinstance(recordings, Sequence):
        return len(recordings) > 0 and _is_number(recordings[0])
    return _is_decoder(recordings) or not isinstance(recordings, Iterable)


def to_waveform(recording: Any, sample_rate: int, sampling_rate: int | None = None) -> Tensor:
    """Return a recording as a waveform: [samples] at `sample_rate`, in floating point, channels averaged.

    Args:
        recording: Samples [samples] or [channels, samples], as a tensor, an array or a list: floating point with full
            scale ±1, or int8, int16, int32 or uint8, which are scaled to that. Or a path. Or (samples, rate), as
            torchaudio and librosa return them; a dictionary of Hugging Face's datasets, {"array": …, "sampling_rate":
            …}; or a decoder of torchcodec.
        sample_rate: Sample rate of the result in Hz.
        sampling_rate: Sample rate of samples that do not state theirs, in Hz; None: `sample_rate`.

    Raises:
        ValueError: it is something else, or a file that cannot be read.
    """
    if isinstance(recording, str | os.PathLike):
        from w2v_attn.audio.read_audio import read_audio

        try:
            return read_audio(os.path.expanduser(recording), sample_rate=sample_rate)
        except ValueError as error:  # its text completes a sentence that begins with the path
            raise ValueError(f"{os.fspath(recording)} {error}") from error
    samples, rate = _samples(recording, sample_rate if sampling_rate is None else sampling_rate)
    if isinstance(samples, str):
        return to_waveform(samples, sample_rate)
    waveform = _mono(_floating(_tensor(samples)))
    return waveform if rate == sample_rate else resample(waveform, _rate(rate), sample_rate)


def resample(waveform: Tensor, source_rate: int, rate: int) -> Tensor:
    """Return a waveform, [samples], at another sample rate, as `read_audio` resamples: float32, on its device."""
    from w2v_attn.audio.samples import resample_blocks

    if not bool(torch.isfinite(waveform).all()):
        raise ValueError("has samples that are NaN or infinite")
    samples = waveform.detach().float().cpu().numpy()
    blocks = list(resample_blocks(iter([samples]), source_rate, rate))
    return torch.from_numpy(np.concatenate(blocks)).to(waveform.device)


def _samples(recording: Any, rate: int) -> tuple[Any, Any]:
    """Return the samples of a recording, or its path, and their sample rate."""
    if _is_pair(recording):
        return recording
    if isinstance(recording, Mapping):
        return _of_dictionary(recording)
    if not _is_decoder(recording):
        return recording, rate
    decoded = recording.get_all_samples() if hasattr(recording, "get_all_samples") else recording
    return decoded.data, decoded.sample_rate


def _of_dictionary(recording: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Return the samples and the rate of a dictionary of Hugging Face's datasets or pipelines, or its path."""
    for name in ("array", "raw"):
        if recording.get(name) is not None:
            if recording.get("sampling_rate") is None:
                raise ValueError(f'a recording with "{name}" has no "sampling_rate": add it, in Hz')
            return recording[name], recording["sampling_rate"]
    audio = recording.get("audio")  # of a row of a data set
    if isinstance(audio, Mapping) or _is_decoder(audio):
        return _samples(audio, 0)
    if recording.get("path") is not None and os.path.isfile(recording["path"]):
        return os.fspath(recording["path"]), 0
    raise ValueError(
        f'a recording must have "array" and "sampling_rate", or the "path" of a file, got a dictionary with '
        f"{', '.join(map(repr, recording)) or 'nothing'}"
    )


def _tensor(samples: Any) -> Tensor:
    is_list = isinstance(samples, Sequence) and not isinstance(samples, str | bytes)
    if is_list and len(samples) > 0 and not _is_number(samples[0]):
        raise ValueError(f"one recording is expected here, got a list of {len(samples)}: pass them one by one")
    try:
        found = samples if isinstance(samples, Tensor) else torch.as_tensor(np.asarray(samples))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "a recording must be samples [samples] or [channels, samples], a path, a dictionary with array and "
            f"sampling_rate, or a torchcodec decoder, got {type(samples).__name__}"
        ) from error
    return found


def _floating(samples: Tensor) -> Tensor:
    """Return samples as floating point with full scale ±1."""
    if samples.is_floating_point():
        return samples.to(torch.promote_types(samples.dtype, torch.float32))
    if samples.dtype not in INTEGERS:
        name = str(samples.dtype).removeprefix("torch.")
        raise ValueError(
            f"samples of {name} have no known full scale: pass float32 from -1 to 1, or int16, int32, int8 or uint8"
        )
    silence, full = INTEGERS[samples.dtype]
    return ((samples.double() - silence) / full).float()


def _mono(samples: Tensor) -> Tensor:
    """Return samples [samples] or [channels, samples] as [samples], the mean of the channels as in `read_audio`."""
    if samples.dim() == 1:
        return samples
    shape = list(samples.shape)
    if samples.dim() != 2:
        raise ValueError(f"a recording must be [samples] or [channels, samples], got {shape}")
    channels, length = shape
    if channels > length or channels > MAX_CHANNELS:
        advice = "pass x.T" if length <= MAX_CHANNELS else "pass several recordings as a list"
        raise ValueError(
            f"a recording must be [samples] or [channels, samples], got {shape}. If it is [samples, channels], as "
            f"soundfile reads it, {advice}"
        )
    return samples[0] if channels == 1 else samples.mean(0)


def _rate(rate: Any) -> int:
    if not _is_number(rate) or rate != int(rate) or not 1000 <= rate <= 384_000:
        raise ValueError(f"a sample rate is a whole number of Hz, from 1000 to 384000, got {rate!r}")
    return int(rate)


def _is_decoder(value: object) -> bool:
    """Return whether a value is torchcodec's AudioDecoder, which datasets gives, or the AudioSamples of one."""
    if hasattr(value, "get_all_samples"):
        return True
    return isinstance(getattr(value, "data", None), Tensor) and hasattr(value, "sample_rate")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    """Return whether a value is (samples, rate)."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and _is_number(value[1])
        and value[1] >= 1000
        and isinstance(value[0], Tensor | np.ndarray)
        and value[0].ndim > 0
    )
