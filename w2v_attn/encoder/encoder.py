"""`load_encoder` and the encoder it returns: waveforms as recorded in, features of chosen layers out."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils import _python_dispatch

from w2v_attn.checkpoints.demo_checkpoint import DEMO_WARNING, is_demo_config
from w2v_attn.checkpoints.loading import Checkpoint, load_checkpoint
from w2v_attn.encoder import cpu_parallel, ragged
from w2v_attn.encoder.blocks import LONG_THRESHOLD
from w2v_attn.encoder.cost import SAMPLE_RATE, SHARE, operations, product_rate
from w2v_attn.encoder.layers import check_layers, highest_block, recorded
from w2v_attn.encoder.long_form import LongForm, batches_of
from w2v_attn.encoder.model_state import Structure, checksum, tensors_of
from w2v_attn.encoder.waveforms import WaveformModel, evaluating, find_device

logger = logging.getLogger(__name__)

# Frames that go through the blocks together on a CPU: what a block keeps of them stays near the caches.
CPU_FRAMES = 800


def load_encoder(
    checkpoint: str | os.PathLike[str] | torch.nn.Module,
    *,
    revision: str | None = None,
    language: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
    long_form: LongForm | None = None,
) -> "Encoder":
    """Load the encoder of a checkpoint, without its head, with the attention of this package.

    Args:
        checkpoint: A hub id, a local folder, a file of fairseq or torchaudio, or a torchaudio module.
        revision: Branch, tag or commit, for hub ids.
        language: Language of the adapters, for checkpoints that have them (MMS). Default: what the weights hold.
        dtype: `float32`, `float64`, `bfloat16` or `float16`: dtype of the weights and of the features.
        device: `auto` (a GPU if there is one), or a name that torch knows.
        backend: Implementation of the attention: `auto`, `tiled`, `sdpa` or `triton`.
        long_form: How long recordings are processed. Default: with full attention.

    Returns:
        The encoder; see `Encoder.extract`.

    Raises:
        CheckpointError: the checkpoint cannot be found or read, or is of a family that is not supported.
        ValueError: an unknown backend, or a device that is not there.

    Examples:
        >>> encoder = load_encoder("facebook/wav2vec2-base")
        >>> [features] = encoder.extract([read_audio("a.wav")], layers=["layer_06", "final"])
        >>> features["layer_06"]  # [frames, 768]
    """
    encoder = Encoder.load(
        checkpoint,
        revision=revision,
        language=language,
        dtype=dtype,
        device=device,
        backend=backend,
        long_form=long_form,
    )
    if is_demo_config(encoder.config):
        logger.warning('%s %s: load_encoder("facebook/wav2vec2-base")', checkpoint, DEMO_WARNING)
    return encoder


@dataclass(frozen=True)
class Layout:
    """What `extract` computes with, of a model as it was at one moment.

    reason: why recordings go through the model itself; None: they go through `encoder`.
    checksum: of the weights in `encoder`; None where they can change without it.
    """

    structure: Structure
    reason: str | None = None
    encoder: ragged.RaggedEncoder | None = None
    checksum: Any = None


class Encoder(WaveformModel):
    """A pretrained encoder: waveforms in, features of named layers out. Made by `load_encoder`.

    Features are always those of `model` as it is when `extract` is called, in evaluation mode, however it was changed:
    by an optimizer, LoRA, a hook, a replaced module, or another model. What `extract` prepares for its own computation
    is compared with the model at every call, and prepared again where the model has changed.

    Args:
        checkpoint: What `load_checkpoint` returns.
        device: Device of the model.
        backend: As for `load_encoder`.
        long_form: As for `load_encoder`.

    Raises:
        ValueError: a `long_form` that this checkpoint does not support.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: torch.device, backend: str = "auto", long_form: LongForm | None = None
    ):
        super().__init__(checkpoint, device=device, backend=backend)
        self.long_form = LongForm() if long_form is None else long_form
        if self.why_not_ragged is not None and self.long_form.kind != "full":
            raise ValueError(
                f"long_form={self.long_form.kind} cannot be had from this checkpoint: {self.why_not_ragged}"
            )

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str] | torch.nn.Module,
        *,
        revision: str | None = None,
        language: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        backend: str = "auto",
        long_form: LongForm | None = None,
    ) -> "Encoder":
        """Load an encoder; see `load_encoder`, which also warns of the demo checkpoint."""
        loaded = load_checkpoint(checkpoint, revision=revision, language=language, dtype=dtype)
        return cls(loaded, device=find_device(device), backend=backend, long_form=long_form)

    @property
    def model(self) -> Any:
        """The transformers model, without a head."""
        return super().model

    @model.setter
    def model(self, model: Any) -> None:
        if not hasattr(getattr(model, "encoder", None), "layers"):
            raise ValueError(
                f"expected a Hugging Face model without a head, got {type(model).__name__}: model.base_model is one"
            )
        WaveformModel.model.fset(self, model)  # type: ignore[attr-defined]
        self._layout: Layout | None = None

    @property
    def why_not_ragged(self) -> str | None:
        """Why recordings go through the Hugging Face model one by one, as it is now; None: they lie side by side."""
        return ragged.why_not(self.model)

    @property
    def num_layers(self) -> int:
        """Number of blocks: the highest N of `layer_NN`."""
        return len(self.model.encoder.layers)

    @torch.no_grad()
    def extract(self, waveforms: Sequence[Tensor], layers: Sequence[str] = ("final",)) -> list[dict[str, Tensor]]:
        """Return the features of each recording.

        They do not depend on the other recordings in the list, nor on the place among them.

        Args:
            waveforms: float32 [samples] each, at `sample_rate`, as recorded; the checkpoint's own normalisation is
                applied here.
            layers: Names of layers: `embed` (what enters block 1), `layer_01` … `layer_NN` (what leaves each block,
                before any final LayerNorm), `final` (what the model returns as `last_hidden_state`); ranges such as
                `layer_03-layer_09`; or `all`. Blocks above the highest of them do not run.

        Returns:
            For each waveform a dictionary from layer name to features [frames, channels], in the encoder's dtype.

        Raises:
            ValueError: an unknown layer, or a waveform that is not [samples], is too short, or has NaN in it.
        """
        wanted = check_layers(layers, self.num_layers)
        waveforms = [one if isinstance(one, Tensor) else torch.as_tensor(one) for one in waveforms]
        for waveform in waveforms:
            self.check_waveform(waveform)
        with evaluating(self.model):
            layout = self._follow()
            if layout.encoder is not None:
                return self._extract_packs(layout.encoder, waveforms, wanted)
            if self.long_form.kind != "full":
                raise ValueError(f"long_form={self.long_form.kind} cannot be had from this model: {layout.reason}")
            return [self._extract_one(waveform, wanted) for waveform in waveforms]

    def expected_seconds(self, samples: int, layers: Sequence[str] = ("final",)) -> float:
        """About how long a recording of so many samples will take here: its operations over a rate measured once."""
        wanted = check_layers(layers, self.num_layers)
        blocks = highest_block(wanted, self.num_layers)
        attended = None if self.long_form.kind == "full" else round(self.long_form.seconds * self.frame_rate("embed"))
        work = operations(self.config, samples / SAMPLE_RATE, blocks=blocks, attended=attended)
        return work / (SHARE * product_rate(self.dtype, self.device))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoder":
        made = super().__deepcopy__(memo)
        assert isinstance(made, Encoder)
        made._layout = None
        return made

    def __getstate__(self) -> dict[str, Any]:
        """For pickles: weights that are laid out cannot be pickled, and are laid out anew."""
        return {**super().__getstate__(), "_layout": None}

    def _follow(self) -> Layout:
        """Return the layout of the model as it is now; a new one takes a moment, and as much memory again."""
        model, layout = self.model, self._layout
        if layout is None or not layout.structure.is_that_of(model):
            layout = Layout(Structure(model), reason=self.why_not_ragged)
        if layout.reason is None:
            # Inside of `parametrize.cached()` weights are those of its first call, whatever becomes of their originals.
            found = None if parametrize._cache_enabled else checksum(tensors_of(model))
            if layout.encoder is None or found is None or found != layout.checksum:
                structure = layout.structure
                layout = self._layout = None  # before there is another one, for the memory
                layout = Layout(structure, encoder=ragged.RaggedEncoder(model), checksum=found)
        self._layout = layout
        return layout

    def _extract_packs(
        self, encoder: ragged.RaggedEncoder, waveforms: Sequence[Tensor], layers: tuple[str, ...]
    ) -> list[dict[str, Tensor]]:
        @torch.no_grad()  # it holds for the thread that asks for it alone
        def run(pack: cpu_parallel.Pack) -> list[dict[str, Tensor]]:
            prepared = self.prepare_all(waveforms[number] for number in pack)
            return encoder.run(prepared, layers, long_form=self.long_form, frame_rate=self.frame_rate("embed"))

        alone, shared = self._packs(waveforms)
        results = [*map(run, alone), *cpu_parallel.run(run, shared)]
        found = {
            number: features
            for pack, result in zip([*alone, *shared], results, strict=True)
            for number, features in zip(pack, result, strict=True)
        }
        return [found[number] for number in range(len(waveforms))]

    def _packs(self, waveforms: Sequence[Tensor]) -> tuple[list[cpu_parallel.Pack], list[cpu_parallel.Pack]]:
        """Numbers of waveforms that go together: in packs that take the whole machine, and packs for streams."""
        frames = [self.count_frames(len(waveform)) for waveform in waveforms]
        if self.device.type == "cpu":
            # Modes that watch every operation, such as a counter of them, are on in this thread alone.
            watched = _python_dispatch._get_current_dispatch_mode() is not None
            count = 1 if watched else cpu_parallel.streams_here()
            return cpu_parallel.plan(frames, streams=count, budget=CPU_FRAMES, longest=LONG_THRESHOLD)
        return list(batches_of(range(len(frames)), frames.__getitem__, self.frame_budget())), []

    def _extract_one(self, waveform: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        with recorded(self.model, layers) as found:
            final = self.model(self.prepare(waveform)[None].to(self.dtype), return_dict=True).last_hidden_state
        # Whoever writes into one of two layers must not find that in the other.
        same = any(final.data_ptr() == other.data_ptr() for other in found.values())
        found["final"] = final.clone() if same else final
        return {name: found[name][0] for name in layers}
