# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""`load_encoder` and the `Encoder` that it returns: recorded waveforms in, features of chosen layers out."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils import _python_dispatch

from w2v_attn.checkpoints.demo_checkpoint import DEMO_WARNING, is_demo_config
from w2v_attn.checkpoints.encoder_parts import encoder_config, encoder_parts, model_inputs
from w2v_attn.checkpoints.loading import Checkpoint, load_checkpoint
from w2v_attn.dtypes import dtype_name
from w2v_attn.encoder import cpu_parallel, ragged
from w2v_attn.encoder.blocks import LONG_THRESHOLD
from w2v_attn.encoder.cost import ENCODER_EFFICIENCY, SAMPLE_RATE, operations, product_rate
from w2v_attn.encoder.layers import check_layers, highest_block, record_layers
from w2v_attn.encoder.long_form import LongForm, batch_by_frames
from w2v_attn.encoder.model_state import ModelStructure, checksum, tensors_of
from w2v_attn.encoder.recordings import is_single
from w2v_attn.encoder.waveforms import WaveformModel, evaluation_mode, find_device
from w2v_attn.encoder.weight_memory import can_prepack, fits, linear_weights

logger = logging.getLogger(__name__)

Layers: TypeAlias = str | int | Sequence[str | int]

# Frames of a pack on a CPU: what a block computes from them then stays in the caches. It is larger for weights that are
# not prepacked, because they are converted to oneDNN's layout for each pack, or even read from a disk.
CPU_FRAMES, UNPACKED_WEIGHTS_FRAMES = 800, 4000


def load_encoder(
    checkpoint: str | os.PathLike[str] | torch.nn.Module,
    *,
    revision: str | None = None,
    language: str | None = None,
    base_model: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
    long_form: LongForm | None = None,
) -> "Encoder":
    """Load the encoder of a checkpoint, without its head, with the attention of this package.

    Args:
        checkpoint: A hub id, a local folder (also of a PEFT adapter), a file of fairseq or torchaudio, or a torchaudio
            module.
        revision: Branch, tag or commit, for hub ids.
        language: Language of the adapters, for checkpoints that have them (MMS). Default: the one in the weights.
        base_model: Base model of a PEFT adapter. Default: the one that the adapter's config names.
        dtype: `float32`, `float64`, `bfloat16` or `float16`: dtype of the weights and of the features.
        device: `auto` (a GPU if there is one), or a device name of torch.
        backend: Implementation of the attention: `auto`, `tiled`, `sdpa` or `triton`.
        long_form: How long recordings are processed. Default: with full attention.

    Returns:
        The encoder; see `Encoder.extract`.

    Raises:
        CheckpointError: the checkpoint cannot be found or read, or is of a family that is not supported.
        ValueError: an unknown backend, or a device that this machine does not have.

    Examples:
        >>> encoder = load_encoder("facebook/wav2vec2-base")
        >>> features = encoder.extract("a.wav", layers=["layer_06", "final"])
        >>> features["layer_06"]  # [frames, 768]
    """
    encoder = Encoder.load(
        checkpoint,
        revision=revision,
        language=language,
        base_model=base_model,
        dtype=dtype,
        device=device,
        backend=backend,
        long_form=long_form,
    )
    if is_demo_config(encoder.config):
        logger.warning('%s %s: load_encoder("facebook/wav2vec2-base")', checkpoint, DEMO_WARNING)
    return encoder


@dataclass(frozen=True)
class PreparedModel:
    """What `extract` prepared from the model, and the state of the model at that moment.

    Attributes:
        structure: Structure of the model.
        prepack: Whether `encoder` has copies of the weights in faster layouts.
        reason: Why recordings go through the Hugging Face model itself; None: they go through `encoder`.
        encoder: The packed encoder.
        checksum: Checksum of the weights in `encoder`; None where they can change without changing it.
    """

    structure: ModelStructure
    prepack: bool = True
    reason: str | None = None
    encoder: ragged.RaggedEncoder | None = None
    checksum: Any = None


class Encoder(WaveformModel):
    """A pretrained encoder: waveforms in, features of named layers out. `load_encoder` returns one.

    `extract` always uses the current state of `model`, in evaluation mode, however the model was changed: by an
    optimizer, LoRA, a hook, a replaced module, or an assignment of another model. What `extract` prepares is compared
    with the model at every call, and prepared again if the model has changed.

    Args:
        checkpoint: The result of `load_checkpoint`.
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
        if self.unpacked_reason is not None and self.long_form.kind != "full":
            raise ValueError(
                f"long_form={self.long_form.kind} is not supported for this checkpoint: {self.unpacked_reason}. "
                "Use long_form=full"
            )

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str] | torch.nn.Module,
        *,
        device: str = "auto",
        backend: str = "auto",
        long_form: LongForm | None = None,
        **options: Any,
    ) -> "Encoder":
        """Load an encoder; see `load_encoder`, which also warns of the demo checkpoint.

        Args:
            checkpoint: As for `load_encoder`, like all arguments.
            options: Of `load_checkpoint`: revision, language, base_model and dtype.
        """
        loaded = load_checkpoint(checkpoint, **options)
        return cls(loaded, device=find_device(device), backend=backend, long_form=long_form)

    @property
    def model(self) -> Any:
        """The transformers model, without a head."""
        return super().model

    @model.setter
    def model(self, model: Any) -> None:
        encoder_parts(model)  # raises for a model with a head
        WaveformModel.model.fset(self, model)  # type: ignore[attr-defined]
        self._prepared: PreparedModel | None = None

    @property
    def unpacked_reason(self) -> str | None:
        """Why recordings go through the Hugging Face model one by one, in its current state; None: they are packed."""
        return ragged.unsupported_reason(self.model)

    @property
    def num_layers(self) -> int:
        """Number of blocks: the highest N of `layer_NN`."""
        return len(encoder_parts(self.model).blocks)

    def __repr__(self) -> str:
        channels = encoder_config(self.config).hidden_size
        return (
            f"Encoder({self.checkpoint.source}: {self.config.model_type}, {self.num_layers} blocks of "
            f"{channels} channels, {self.frame_rate():g} frames/s, {dtype_name(self.dtype)} on "
            f"{self.device})"
        )

    @overload
    def extract(
        self, recordings: list[Any] | Sequence[Tensor], layers: Layers = ("final",), *, sampling_rate: int | None = None
    ) -> list[dict[str, Tensor]]: ...

    @overload
    def extract(
        self, recordings: Any, layers: Layers = ("final",), *, sampling_rate: int | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]: ...

    @torch.no_grad()
    def extract(
        self, recordings: Any, layers: Layers = ("final",), *, sampling_rate: int | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the features of one recording, or of each recording of a list.

        They do not depend on the other recordings in the list, nor on their order.

        Args:
            recordings: A recording, or a list of recordings, as recorded: this method applies the normalisation of the
                checkpoint. Each one is

                - samples [samples] or [channels, samples], of which the mean is taken, as `read_audio` does: a tensor
                  or an array of floating point with full scale ±1, or of int16, int32, int8 or uint8;
                - a path;
                - (samples, rate), as torchaudio.load and librosa.load return them;
                - a dictionary of Hugging Face's datasets, {"array": …, "sampling_rate": …}, or a decoder of torchcodec.
            layers: Names of layers: `embed` (the input of block 1), `layer_01` … `layer_NN` (the outputs of the
                blocks, before any final LayerNorm), `final` (what the model returns as `last_hidden_state`); numbers of
                blocks, with 0 for `embed` and -1 for the last block; ranges such as `layer_03-layer_09` or `3-9`; or
                `all`. Blocks above the highest requested layer do not run.
            sampling_rate: Sample rate of samples that do not state theirs, in Hz. Default: `sample_rate`. Another rate
                is resampled.

        Returns:
            A dictionary from layer name to features [frames, channels], in the encoder's dtype; for a list of
            recordings a list of such dictionaries, also for a list of one.

        Raises:
            ValueError: an unknown layer, or a recording that is something else, cannot be read, is too short, or
                contains NaN.
        """
        wanted = check_layers(layers, self.num_layers)
        if is_single(recordings):
            return self._extract([self.to_waveform(recordings, sampling_rate)], wanted)[0]
        waveforms: list[Tensor] = []
        for number, recording in enumerate(recordings):
            try:
                waveforms.append(self.to_waveform(recording, sampling_rate))
            except ValueError as error:
                raise ValueError(f"recording {number} (from 0): {error}") from error
        return self._extract(waveforms, wanted)

    def _extract(self, waveforms: Sequence[Tensor], wanted: tuple[str, ...]) -> list[dict[str, Tensor]]:
        with evaluation_mode(self.model):
            prepared = self._prepare_model()
            if prepared.encoder is not None:
                return self._extract_packs(prepared.encoder, waveforms, wanted)
            if self.long_form.kind != "full":
                raise ValueError(
                    f"long_form={self.long_form.kind} is not supported for this model: {prepared.reason}. "
                    "Use long_form=full"
                )
            return [self._extract_one(waveform, wanted) for waveform in waveforms]

    def expected_seconds(self, samples: int, layers: Layers = ("final",)) -> float:
        """Return a rough estimate of the time for a recording on this machine: its operations over a measured rate."""
        wanted = check_layers(layers, self.num_layers)
        blocks = highest_block(wanted, self.num_layers)
        attended = None if self.long_form.kind == "full" else round(self.long_form.seconds * self.frame_rate("embed"))
        work = operations(self.config, samples / SAMPLE_RATE, blocks=blocks, attended=attended)
        return work / (ENCODER_EFFICIENCY * product_rate(self.dtype, self.device))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoder":
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, Encoder)
        copied._prepared = None
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, without prepared weights: these cannot be pickled."""
        return {**super().__getstate__(), "_prepared": None}

    def _prepare_model(self) -> PreparedModel:
        """Return what is prepared from the current model; with prepacked weights it takes as much memory as they do."""
        model, prepared = self.model, self._prepared
        if prepared is None or not prepared.structure.matches(model):
            prepared = PreparedModel(ModelStructure(model), can_prepack(model), self.unpacked_reason)
        if prepared.reason is None:
            shared = () if prepared.prepack else linear_weights(encoder_parts(model).blocks)
            # Inside `parametrize.cached()` weights keep the values of the first call, even if their originals change.
            found = None if parametrize._cache_enabled else checksum(tensors_of(model), shared=shared)  # type: ignore[reportUnknownMemberType]
            if prepared.encoder is None or found is None or found != prepared.checksum:
                structure, prepack = prepared.structure, prepared.prepack
                prepared = self._prepared = None  # frees the old weights before the new ones are made
                encoder = ragged.RaggedEncoder(model, prepack=prepack)
                prepared = PreparedModel(structure, prepack, encoder=encoder, checksum=found)
        self._prepared = prepared
        return prepared

    def _extract_packs(
        self, encoder: ragged.RaggedEncoder, waveforms: Sequence[Tensor], layers: tuple[str, ...]
    ) -> list[dict[str, Tensor]]:
        @torch.no_grad()  # gradient mode is set for each thread
        def run(pack: cpu_parallel.Pack) -> list[dict[str, Tensor]]:
            inputs = self.prepare_all(waveforms[number] for number in pack)
            return encoder.run(inputs, layers, long_form=self.long_form, frame_rate=self.frame_rate("embed"))

        alone, shared = self._packs(waveforms, CPU_FRAMES if encoder.prepack else UNPACKED_WEIGHTS_FRAMES)
        results = [*map(run, alone), *cpu_parallel.run_packs(run, shared)]
        found = {
            number: features
            for pack, result in zip([*alone, *shared], results, strict=True)
            for number, features in zip(pack, result, strict=True)
        }
        return [found[number] for number in range(len(waveforms))]

    def _packs(
        self, waveforms: Sequence[Tensor], budget: int
    ) -> tuple[list[cpu_parallel.Pack], list[cpu_parallel.Pack]]:
        """Return packs, as indices of waveforms: those that take all cores, and those that run in parallel.

        Args:
            waveforms: The waveforms.
            budget: About how many frames a pack has on a CPU.
        """
        frames = [self.count_frames(len(waveform)) for waveform in waveforms]
        if self.device.type == "cpu":
            # A dispatch mode, such as a counter of operations, is active in this thread only.
            watched = _python_dispatch._get_current_dispatch_mode() is not None
            # Two packs at the same time would read weights that do not fit into memory twice.
            workers = 1 if watched or not fits(self.model) else cpu_parallel.num_workers()
            return cpu_parallel.plan(frames, workers=workers, budget=budget, longest=LONG_THRESHOLD)
        return list(batch_by_frames(range(len(frames)), frames.__getitem__, self.frame_budget())), []

    def _extract_one(self, waveform: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        with record_layers(self.model, layers) as found:
            inputs = model_inputs(self.model, self.prepare(waveform)[None].to(self.dtype))
            final = self.model(**inputs, return_dict=True).last_hidden_state
        # A caller who writes into one layer must not change another one.
        same = any(final.data_ptr() == other.data_ptr() for other in found.values())
        found["final"] = final.clone() if same else final
        return {name: found[name][0] for name in layers}
