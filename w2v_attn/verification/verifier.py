"""`verify`: the steps of the comparison in their order.

The reference for a recording is stock transformers in float64 on that recording alone. In each dtype one model runs
with stock's code first and then, with the same parameters, with ours; so only one is in memory. Gradients are those of
one loss over all recordings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.encoder_parts import ctc_head_of
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.waveforms import WaveformModel
from w2v_attn.verification import comparisons, runners, stages
from w2v_attn.verification.bounds import distance
from w2v_attn.verification.comparisons import Comparison, Stages
from w2v_attn.verification.report import Padding, Report
from w2v_attn.verification.request import (
    ALONE,
    DTYPE_COST,
    DTYPES,
    EXTRACT,
    PADDED,
    STOCK,
    Sample,
    VerificationRequest,
    preprocessed_inputs,
    select_samples,
)
from w2v_attn.verification.runners import Trace

# Attention weights are compared on this many recordings, the shortest: those of a block have T² entries for each head.
NUM_WEIGHT_RECORDINGS = 2


@dataclass
class StockResults:
    """The results of stock in one dtype.

    Attributes:
        alone: Each recording alone.
        padded: All recordings in one batch; the same object as `alone` if ours ignores padding.
        weights: Attention weights of the shortest recordings, see `runners.attention_weights`.
    """

    alone: Trace
    padded: Trace
    weights: dict[str, list[Tensor]]


def verify(request: VerificationRequest, advance: Callable[[float], None]) -> Report:
    """Return the report of a comparison.

    Args:
        request: What to compare.
        advance: Called with the cost of each completed step.

    Raises:
        CheckpointError: see `load_checkpoint`.
        ValueError: no recording can be used.
    """
    verifier = _Verifier(request, advance)
    for dtype in (dtype for dtype in DTYPES if dtype in {*request.dtypes, "float64"}):
        stages, head = verifier.compare_model(dtype)
        if dtype in request.dtypes:
            verifier.compare_encoder(dtype, stages, head)
    return verifier.report()


class _Verifier:
    """The comparisons so far. In float64, which runs first, the results of stock are the exact values."""

    def __init__(self, request: VerificationRequest, advance: Callable[[float], None]):
        self._request, self._advance = request, advance
        self._samples: list[Sample] = []
        self._exact: StockResults
        self._description: dict[str, Any] = {}
        self._found: list[Comparison] = []
        self._notes: dict[str, None] = {}  # a dictionary for its order

    def report(self) -> Report:
        """Return the report of all comparisons."""
        return Report(**self._description, notes=tuple(self._notes), comparisons=tuple(self._found))

    def compare_model(self, dtype: str) -> tuple[Stages, Any]:
        """Compare stock, then our attention in the same model.

        Returns:
            Stock's stages on each recording alone, and the CTC head of the model or None.
        """
        request = self._request
        loaded = load_checkpoint(
            request.checkpoint,
            revision=request.revision,
            language=request.language,
            base_model=request.base_model,
            dtype=dtype,
            with_head=True,
        )
        subject = WaveformModel(loaded, device=request.device, backend=request.backend)
        runners.restore_model(subject.model)
        model = stages.compared_model(subject.model)
        if not self._samples:
            self._samples = select_samples(
                self._request.rows, subject, count=self._request.count, seconds=self._request.seconds
            )
        inputs = [subject.prepare(sample.waveform).to(subject.dtype) for sample in self._samples]
        theirs = self._run_stock(model, inputs)
        if dtype == "float64":
            self._exact = theirs
            self._description = self._describe(subject, model, inputs)
        self._advance(DTYPE_COST[dtype] * STOCK)
        if dtype in self._request.dtypes:
            if dtype == "float32":
                self._compare_inputs(subject)
            self._compare_alone(dtype, model, inputs, theirs)
            self._advance(DTYPE_COST[dtype] * ALONE)
            self._compare_padded(dtype, model, inputs, theirs)
            self._advance(DTYPE_COST[dtype] * PADDED)
        return theirs.alone.stages, ctc_head_of(model)

    @torch.no_grad()
    def compare_encoder(self, dtype: str, theirs: Stages, head: Any) -> None:
        """Compare the features of `Encoder.extract`. theirs, head: the result of `compare_model`."""
        request = self._request
        encoder = Encoder.load(
            request.checkpoint,
            revision=request.revision,
            language=request.language,
            base_model=request.base_model,
            dtype=dtype,
            device=str(request.device),
            backend=request.backend,
        )
        if encoder.unpacked_reason is not None:
            self._note(f"extract processes these recordings one by one: {encoder.unpacked_reason}")
        exact, waveforms = self._exact.alone.stages, [sample.waveform for sample in self._samples]
        batched = _layers(encoder.extract(waveforms, layers=("all",)))
        symbols = {} if head is None else {"logits": [head(x.to(encoder.device)).cpu() for x in batched["final"]]}
        self._found += comparisons.compare_stages(dtype, "extract", {**batched, **symbols}, theirs, exact)
        if dtype == "float32":
            if symbols:
                self._found.append(comparisons.compare_symbols("extract", symbols, theirs, exact))
            alone = _layers([encoder.extract([waveform], layers=("all",))[0] for waveform in waveforms])
            backwards = _layers(encoder.extract(waveforms[::-1], layers=("all",))[::-1])
            for order, found in (("in order", batched), ("backwards", backwards)):
                self._found += comparisons.compare_batch(order, found, alone, theirs, exact)
        self._advance(DTYPE_COST[dtype] * EXTRACT)

    def _run_stock(self, model: Any, inputs: Sequence[Tensor]) -> StockResults:
        alone = runners.run_each(model, inputs)
        ignores_padding = runners.ignores_padding(model, self._request.backend)
        padded = alone if ignores_padding else runners.run_batched(model, inputs, alone.shapes)
        weights = self._weights(model, inputs, alone.stages)
        if ignores_padding:  # the second half is that of the padded batch
            weights = {stage: found[: len(found) // 2] * 2 for stage, found in weights.items()}
        return StockResults(alone, padded, weights)

    def _describe(self, subject: WaveformModel, model: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
        return {
            "checkpoint": self._request.checkpoint,
            "language": self._request.language,
            "family": model.config.model_type,
            "architecture": type(model).__name__,
            "recordings": {sample.id: len(sample.waveform) / subject.sample_rate for sample in self._samples},
            "padding": self._padding(model, inputs),
        }

    def _padding(self, model: Any, inputs: Sequence[Tensor]) -> Padding | None:
        """Return the effect of padding on stock's features; None if no recording is padded."""
        alone = self._exact.alone
        batched = runners.batched_stages(model, inputs, alone.shapes)["final"]
        distances = [distance([one], [other]) for one, other in zip(batched, alone.stages["final"], strict=True)]
        sizes = [len(one) for one in inputs]
        padded = [number for number, size in enumerate(sizes) if size < max(sizes)]
        if not padded:
            return None
        worst = max(padded, key=lambda number: distances[number][1])
        names = [sample.id for sample in self._samples]
        longest = names[sizes.index(max(sizes))]
        return Padding(names[worst], longest, *distances[worst], runners.has_group_norm(model))

    def _compare_inputs(self, subject: WaveformModel) -> None:
        theirs = preprocessed_inputs(subject.checkpoint, self._samples)
        if theirs is None:
            self._note("the checkpoint has no preprocessor: its input is normalised by the default of its family")
            return
        ours = [subject.prepare(sample.waveform).cpu() for sample in self._samples]
        exact = [subject.prepare(sample.waveform.double()).cpu() for sample in self._samples]
        self._found += comparisons.compare_stages(
            "float32", "input", {"input": ours}, {"input": theirs}, {"input": exact}
        )

    def _compare_alone(self, dtype: str, model: Any, inputs: Sequence[Tensor], theirs: StockResults) -> None:
        runners.patch_model(model, self._request.backend)
        ours = runners.run_each(model, inputs)
        self._compare_traces(dtype, "alone", model, ours, theirs.alone, self._exact.alone)

    def _compare_padded(self, dtype: str, model: Any, inputs: Sequence[Tensor], theirs: StockResults) -> None:
        runners.patch_model(model, self._request.backend, unpad=True)
        ours = runners.run_batched(model, inputs, theirs.alone.shapes)
        if theirs.padded is not theirs.alone:
            self._note(
                "the padded batch is compared with stock's padded batch, which differs from each recording alone"
            )
        self._compare_traces(dtype, "padded", model, ours, theirs.padded, self._exact.padded)
        weights = self._weights(model, inputs, theirs.alone.stages)
        exact, stock = self._exact.weights, theirs.weights
        if all(torch.equal(one, one[:1].expand_as(one)) and len(one) > 1 for block in exact.values() for one in block):
            self._note("stock returns attention weights averaged over heads: ours are averaged for the comparison")
            weights, stock, exact = _averaged(weights), _averaged(stock), _averaged(exact)
        self._found += comparisons.compare_stages(dtype, "weights", weights, stock, exact)

    def _compare_traces(self, dtype: str, side: str, model: Any, ours: Trace, theirs: Trace, exact: Trace) -> None:
        self._found += comparisons.compare_stages(dtype, side, ours.stages, theirs.stages, exact.stages)
        if dtype == "float32" and ctc_head_of(model) is not None:
            self._found.append(comparisons.compare_symbols(side, ours.stages, theirs.stages, exact.stages))
        self._found += comparisons.compare_gradients(
            dtype, side, ours, theirs, exact, stages.stages_of_parameters(model)
        )

    def _weights(self, model: Any, inputs: Sequence[Tensor], stages: Stages) -> dict[str, list[Tensor]]:
        """Return the attention weights of the shortest recordings. stages: of each recording alone."""
        frames = [len(layer) for layer in stages["layer_01"]]
        shortest = sorted(range(len(frames)), key=frames.__getitem__)[:NUM_WEIGHT_RECORDINGS]
        chosen = [inputs[number] for number in shortest], [frames[number] for number in shortest]
        return runners.attention_weights(model, *chosen)

    def _note(self, text: str) -> None:
        self._notes[text] = None


def _layers(features: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Return a dictionary from layer name to the features of each recording."""
    return {name: [one[name].cpu() for one in features] for name in features[0]}


def _averaged(weights: Stages) -> dict[str, list[Tensor]]:
    """Return attention weights, [H, T, T], averaged over heads, [T, T]."""
    return {stage: [one.mean(0) for one in block] for stage, block in weights.items()}
