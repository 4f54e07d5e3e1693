"""`WaveformModel`, the base of encoders and recognizers: the device, the frame counts and the input of a model."""

import copy
import logging
import threading
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from w2v_attn.checkpoints import weight_norms
from w2v_attn.checkpoints.encoder_parts import encoder_config
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.encoder import frontend_batched
from w2v_attn.encoder.cost import memory_limit
from w2v_attn.encoder.inputs import Input, build_input
from w2v_attn.encoder.recordings import to_waveform
from w2v_attn.encoder.weight_memory import device_memory, fits, weight_bytes
from w2v_attn.patching.replace import replace_attention
from w2v_attn.run_error import RecordingError

logger = logging.getLogger(__name__)

# Frames of a batch. On a CPU the budget is for each core: at the end of a batch all cores wait for the last one, and
# with recordings of ten seconds and more each core needs several of them to balance the load (1600 frames are up to a
# fifth slower than 4000). More than MAX_FRAMES is not faster, neither on a CPU nor on a GPU.
FRAMES_PER_CORE, MAX_FRAMES = 4000, 65_536
# The fraction of a machine's memory that the features of a batch may take on a CPU.
MEMORY_FRACTION = 1 / 8


def find_device(device: str) -> torch.device:
    """Return the device of this name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'device="{device}" is not available: {reason}. device=auto takes a GPU if there is one'
        ) from error
    return found


# Modules in training mode that are temporarily in evaluation mode, and how many calls hold them there.
_EVALUATING: MutableMapping[torch.nn.Module, int] = WeakKeyDictionary()
_EVALUATING_LOCK = threading.Lock()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and disable autocast; the previous state is restored at the end.

    In training mode features would have dropout and SpecAugment, and batch norms would update their statistics. Several
    threads may enter at the same time. A thread that trains the same model meanwhile would train in evaluation mode:
    use a copy of the model for that.
    """
    with _EVALUATING_LOCK:
        held = [module for module in model.modules() if module.training or module in _EVALUATING]
        for module in held:
            _EVALUATING[module] = _EVALUATING.get(module, 0) + 1
            module.training = False
    try:
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        with _EVALUATING_LOCK:
            for module in held:
                _EVALUATING[module] -= 1
                if _EVALUATING[module] == 0:
                    del _EVALUATING[module]
                    module.training = True


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device that a model computes on, even if accelerate offloads its weights between calls."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class WaveformModel:
    """A pretrained model with the attention of this package, and the preparation of its waveforms.

    Attributes:
        model: The transformers model; it may be changed, and another one may be assigned.
        checkpoint: The checkpoint that it was loaded from.
        input: The conversion of a waveform to the input of the model.
    """

    input: Input

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, backend: str = "auto"):
        self.checkpoint = checkpoint
        self.model = replace_attention(checkpoint.model, backend=backend).to(device).eval()
        if device.type == "cpu" and not fits(self.model):
            logger.warning(
                "the weights of %s take %.1f GB, and this machine has %.1f GB of memory: they are read from the disk "
                "again for every pack of recordings. Half precision takes half (dtype=bfloat16), if the checkpoint is "
                "stored in it", checkpoint.source, weight_bytes(self.model) / 1e9, (device_memory(device) or 0) / 1e9,
            )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> "WaveformModel":
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        model = copy.deepcopy(self.model, memo)
        checkpoint = replace(self.checkpoint, model=model, temporary_folder=None)
        vars(copied).update(vars(self), _model=model, checkpoint=checkpoint)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, without a temporary folder of the checkpoint, which is not needed any more.

        torch does not pickle parametrized modules, so weight norms are removed from a copy of the model and put back
        by `__setstate__`.
        """
        state = {**vars(self), "_model": copy.deepcopy(self.model)}
        state["_weight_norms"] = weight_norms.remove_weight_norms(state["_model"])
        state["checkpoint"] = replace(self.checkpoint, model=None, temporary_folder=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        norms = state.pop("_weight_norms")
        vars(self).update(state)
        weight_norms.restore_weight_norms(self._model, norms)
        self.checkpoint = replace(self.checkpoint, model=self._model)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._model = model
        self.checkpoint = replace(self.checkpoint, model=model)
        self.input = build_input(self.checkpoint, model.config)

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return device_of(self.model)

    @property
    def config(self) -> Any:
        """The config of the transformers model."""
        return self.model.config

    @property
    def sample_rate(self) -> int:
        """Sample rate of the input waveforms in Hz."""
        return self.checkpoint.sample_rate

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the features."""
        return self.model.dtype

    def count_frames(self, samples: int) -> int:
        """Return how many frames the model computes from this many samples."""
        return self.input.count_frames(samples)

    def frame_budget(self) -> int:
        """Return how many frames a batch may have, over all its recordings, to fit into memory."""
        config = encoder_config(self.config)
        if self.device.type != "cuda":
            budget = min(FRAMES_PER_CORE * torch.get_num_threads(), MAX_FRAMES)
            # All layers in float32, and a second copy of them for the writer.
            bytes_of_frame = 2 * 4 * config.hidden_size * (config.num_hidden_layers + 2)
            memory = memory_limit()
            return budget if memory is None else max(1, min(budget, int(MEMORY_FRACTION * memory) // bytes_of_frame))
        free, _ = torch.cuda.mem_get_info(self.device)
        # The feed-forward is widest; a dozen tensors of the hidden size exist at the same time, at most in float32.
        bytes_of_frame = 4 * (2 * config.intermediate_size + 12 * config.hidden_size)
        return max(1, min(MAX_FRAMES, free // 2 // bytes_of_frame))

    def frame_rate(self, layer: str = "final") -> float:
        """Return the frames per second of this layer."""
        samples = self.input.hop
        if layer != "final":
            samples *= getattr(self.config, "squeeze_factor", 1)
        elif getattr(self.config, "add_adapter", False):
            samples *= self.config.adapter_stride**self.config.num_adapter_layers
        return self.sample_rate / samples

    def to_waveform(self, recording: Any, sampling_rate: int | None = None) -> Tensor:
        """Return a recording as a waveform that this model can process; see `recordings.to_waveform`.

        Raises:
            ValueError: it cannot; the text is the reason.
        """
        waveform = to_waveform(recording, self.sample_rate, sampling_rate)
        self.check_waveform(waveform)
        return waveform

    def check_waveform(self, waveform: Tensor) -> None:
        """Check that this model can process a waveform.

        Raises:
            ValueError: it cannot; the text is the reason.
        """
        if waveform.dim() != 1:
            raise ValueError(f"a waveform must be [samples], got {list(waveform.shape)}: average the channels first")
        if len(waveform) < self.input.min_samples:
            raise RecordingError(
                f"is too short: {len(waveform)} samples at {self.sample_rate} Hz, "
                f"at least {self.input.min_samples} are needed",
                kind="too_short",
            )
        if not bool(torch.isfinite(waveform).all()):
            raise RecordingError("has samples that are NaN or infinite", kind="non_finite")

    def prepare_all(self, waveforms: Iterable[Tensor]) -> Iterable[Tensor]:
        """Return the model inputs of waveforms: lazily one by one on a CPU, as a batch on accelerators."""
        if not frontend_batched.is_batching_faster(self.device):
            return map(self.prepare, waveforms)
        return self.input.prepare_batch(self._to_device(list(waveforms)))

    def _to_device(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return waveforms on the device in at least float32; CPU waveforms are sent with one copy."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        if self.device.type != "cuda" or any(waveform.device.type != "cpu" for waveform in waveforms):
            return [waveform.to(self.device, dtype) for waveform in waveforms]
        lengths = [len(waveform) for waveform in waveforms]
        packed = torch.empty(sum(lengths), dtype=dtype, pin_memory=True)
        torch.cat([waveform.to(dtype) for waveform in waveforms], out=packed)
        return packed.to(self.device, non_blocking=True).split(lengths)

    def prepare(self, waveform: Tensor) -> Tensor:
        """Return the model input of a waveform, [samples], in at least float32, normalised if the checkpoint asks."""
        return self.input.prepare(waveform.to(self.device, torch.promote_types(self.dtype, torch.float32)))
