"""What every model that reads waveforms has in common: where it is, and how a waveform becomes its input."""

import copy
import threading
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from w2v_attn.checkpoints import weight_norms
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.encoder import frontend_batched
from w2v_attn.encoder.inputs import Input, input_of
from w2v_attn.encoder.memory import most_bytes
from w2v_attn.patching.replace import replace_attention

# Frames of a batch. On a CPU, for each core: at the end of a batch all cores wait for the last one, and of recordings
# of ten seconds and more it takes several for each to be even (1600 are up to a fifth slower than 4000). Beyond the
# other there is nothing to gain, on a GPU as well.
CORE_BUDGET, MAX_FRAMES = 4000, 65_536
# The part of a machine's memory that features of a batch may take on a CPU.
SHARE_OF_MEMORY = 1 / 8


def find_device(device: str) -> torch.device:
    """ "auto" as a device that is there; any other name as torch knows it.

    Raises:
        ValueError: no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device="{device}" cannot be used here: {reason}. device=auto takes what is there') from error
    return found


# Modules in training mode that are in evaluation mode for now, and how many calls need them there.
_EVALUATING: MutableMapping[torch.nn.Module, int] = WeakKeyDictionary()
_EVALUATING_LOCK = threading.Lock()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """While open, a model is in evaluation mode and no autocast is on, as features are defined; then all is as before.

    In training mode there would be dropout and SpecAugment in features, and batch norms would learn from them. Several
    threads may be in here at once. A thread that trains the same model meanwhile would train in evaluation mode: take a
    copy of the model for that.
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
    """Return the device that a model computes on, also where accelerate keeps its weights elsewhere between calls."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class WaveformModel:
    """A pretrained model with our attention, and its waveforms.

    model: the transformers model; it may be changed, and another one may take its place. checkpoint: what it was loaded
    from. input: how a waveform becomes what the model reads.
    """

    input: Input

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, backend: str = "auto"):
        self.checkpoint = checkpoint
        self.model = replace_attention(checkpoint.model, backend=backend).to(device).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> "WaveformModel":
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        model = copy.deepcopy(self.model, memo)
        vars(made).update(
            vars(self), _model=model, checkpoint=replace(self.checkpoint, model=model, temporary_folder=None)
        )
        return made

    def __getstate__(self) -> dict[str, Any]:
        """For pickles. A folder that was made for the checkpoint stays with this one: it has been read.

        torch pickles no parametrized modules, so weight norms are taken off a copy of the model and put back later.
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
        self.input = input_of(self.checkpoint, model.config)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return device_of(self.model)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    @property
    def sample_rate(self) -> int:
        """Hz, of the waveforms that go in."""
        return self.checkpoint.sample_rate

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of what comes out."""
        return self.model.dtype

    def count_frames(self, samples: int) -> int:
        """Frames that the model makes of so many samples."""
        return self.input.count_frames(samples)

    def frame_budget(self) -> int:
        """Frames of a batch, over all its recordings, that fit into the memory there is."""
        if self.device.type != "cuda":
            budget = min(CORE_BUDGET * torch.get_num_threads(), MAX_FRAMES)
            # As where every layer is asked for, in float32, and once more as what is written.
            bytes_of_frame = 2 * 4 * self.config.hidden_size * (self.config.num_hidden_layers + 2)
            memory = most_bytes()
            return budget if memory is None else max(1, min(budget, int(SHARE_OF_MEMORY * memory) // bytes_of_frame))
        free, _ = torch.cuda.mem_get_info(self.device)
        # Widest is a feed-forward; some dozen tensors of a block's own width stand beside it, at most in float32.
        bytes_of_frame = 4 * (2 * self.config.intermediate_size + 12 * self.config.hidden_size)
        return max(1, min(MAX_FRAMES, free // 2 // bytes_of_frame))

    def frame_rate(self, layer: str = "final") -> float:
        """Frames a second in this layer."""
        samples = self.input.hop
        if layer != "final":
            samples *= getattr(self.config, "squeeze_factor", 1)
        elif getattr(self.config, "add_adapter", False):
            samples *= self.config.adapter_stride**self.config.num_adapter_layers
        return self.sample_rate / samples

    def check_waveform(self, waveform: Tensor) -> None:
        """Raises ValueError where this model cannot read a waveform; the text is the reason."""
        if waveform.dim() != 1:
            raise ValueError(f"a waveform must be [samples], got {list(waveform.shape)}: average the channels first")
        if len(waveform) < self.input.least_samples:
            raise ValueError(
                f"is too short: {len(waveform)} samples at {self.sample_rate} Hz, "
                f"at least {self.input.least_samples} are needed"
            )
        if not bool(torch.isfinite(waveform).all()):
            raise ValueError("has samples that are NaN or infinite")

    def prepare_all(self, waveforms: Iterable[Tensor]) -> Iterable[Tensor]:
        """Each as `prepare` makes it: one when it is asked for on a CPU, all together on accelerators."""
        if not frontend_batched.pays(self.device):
            return map(self.prepare, waveforms)
        return self.input.prepare_together(self._sent(list(waveforms)))

    def _sent(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor]:
        """Waveforms on the device, float32 at least; those of the CPU in one copy."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        if self.device.type != "cuda" or any(waveform.device.type != "cpu" for waveform in waveforms):
            return [waveform.to(self.device, dtype) for waveform in waveforms]
        lengths = [len(waveform) for waveform in waveforms]
        together = torch.empty(sum(lengths), dtype=dtype, pin_memory=True)
        torch.cat([waveform.to(dtype) for waveform in waveforms], out=together)
        return together.to(self.device, non_blocking=True).split(lengths)

    def prepare(self, waveform: Tensor) -> Tensor:
        """[samples] as what the model reads, float32 at least: normalised as the checkpoint wants it."""
        return self.input.prepare(waveform.to(self.device, torch.promote_types(self.dtype, torch.float32)))
