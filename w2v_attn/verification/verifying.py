"""`verify`: the proof, in the order in which it happens.

The reference for a recording is stock transformers in float64, that recording alone. In each dtype one model is
stock's first and then, the same parameters, ours; so only one stands in memory. Its gradients are those of one loss
over all recordings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.waveforms import WaveformModel
from w2v_attn.verification import comparing, runners, stages
from w2v_attn.verification.comparing import Stages
from w2v_attn.verification.figures import distance
from w2v_attn.verification.inputs import Sample, choose, stock_inputs
from w2v_attn.verification.report import Comparison, Padding, Report
from w2v_attn.verification.runners import Climb

DTYPES = ("float64", "float32", "bfloat16")
# What a dtype costs, and what the steps in it do: a forward is 1, a forward with its backward 3.
DTYPE_COST = {"float64": 2.0, "float32": 1.0, "bfloat16": 1.0}
STOCK, ALONE, PADDED, EXTRACT = 8.0, 3.0, 4.0, 3.0
# Of so many recordings, the shortest, there are attention weights: those of a block have T² entries for each head.
WEIGHED = 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compare.

    checkpoint, revision, language, device, backend: as for `load_encoder`. dtypes: of DTYPES.
    rows: recordings, of which `count` are taken, of each the first `seconds`.

    Raises:
        ValueError: another dtype, or none.
    """

    checkpoint: str
    revision: str | None
    language: str | None
    rows: Sequence[Row]
    count: int
    seconds: float
    dtypes: Sequence[str]
    device: torch.device
    backend: str

    def __post_init__(self) -> None:
        unknown = [dtype for dtype in self.dtypes if dtype not in DTYPES]
        if unknown or not self.dtypes:
            raise ValueError(f"dtypes must be some of {', '.join(DTYPES)}, got {', '.join(unknown) or 'none'}")

    @property
    def cost(self) -> float:
        """Of all steps; what `verify` tells as it goes adds up to it."""
        ours = sum(DTYPE_COST[dtype] for dtype in set(self.dtypes)) * (ALONE + PADDED + EXTRACT)
        return ours + sum(DTYPE_COST[dtype] for dtype in {*self.dtypes, "float64"}) * STOCK


@dataclass
class Theirs:
    """What stock computes in one dtype.

    alone: each recording alone. padded: all in one batch; the same as alone where ours is to be just that.
    weights: attention weights of the shortest recordings, see `runners.attention_weights`.
    """

    alone: Climb
    padded: Climb
    weights: dict[str, list[Tensor]]


def verify(request: Request, advance: Callable[[float], None]) -> Report:
    """The report. advance: told what each step cost that is done.

    Raises:
        CheckpointError: see `load_checkpoint`. ValueError: no recording can be used.
    """
    proof = _Proof(request, advance)
    for dtype in (dtype for dtype in DTYPES if dtype in {*request.dtypes, "float64"}):
        stages, head = proof.swap(dtype)
        if dtype in request.dtypes:
            proof.extract(dtype, stages, head)
    return proof.report()


class _Proof:
    """What was found so far. In float64, which comes first, stock is the exact value that all else is compared with."""

    def __init__(self, request: Request, advance: Callable[[float], None]):
        self._request, self._advance = request, advance
        self._samples: list[Sample] = []
        self._exact: Theirs
        self._inputs: list[Tensor]
        self._about: dict[str, Any] = {}
        self._found: list[Comparison] = []
        self._notes: dict[str, None] = {}  # a dictionary for its order

    def report(self) -> Report:
        """All of it."""
        return Report(**self._about, notes=tuple(self._notes), comparisons=tuple(self._found))

    def swap(self, dtype: str) -> tuple[Stages, Any]:
        """Stock, then our attention in that model -> (stock's stages on each recording alone, its CTC head or None)."""
        request = self._request
        loaded = load_checkpoint(
            request.checkpoint, revision=request.revision, language=request.language, dtype=dtype, with_head=True
        )
        subject = WaveformModel(loaded, device=request.device, backend=request.backend)
        runners.become_stock(subject.model)
        model = stages.subject_of(subject.model)
        if not self._samples:
            self._samples = choose(
                self._request.rows, subject, count=self._request.count, seconds=self._request.seconds
            )
        inputs = [subject.prepare(sample.waveform).to(subject.dtype) for sample in self._samples]
        theirs = self._climb_stock(model, inputs)
        if dtype == "float64":
            self._exact, self._inputs = theirs, [one.cpu() for one in inputs]
            self._about = self._describe(subject, model, inputs)
        self._advance(DTYPE_COST[dtype] * STOCK)
        if dtype in self._request.dtypes:
            if dtype == "float32":
                self._compare_inputs(subject)
            self._compare_alone(dtype, model, inputs, theirs)
            self._advance(DTYPE_COST[dtype] * ALONE)
            self._compare_padded(dtype, model, inputs, theirs)
            self._advance(DTYPE_COST[dtype] * PADDED)
        return theirs.alone.stages, getattr(model, "lm_head", None)

    @torch.no_grad()
    def extract(self, dtype: str, theirs: Stages, head: Any) -> None:
        """The encoder as `load_encoder` gives it. theirs, head: what `swap` gave."""
        request = self._request
        encoder = Encoder.load(
            request.checkpoint,
            revision=request.revision,
            language=request.language,
            dtype=dtype,
            device=str(request.device),
            backend=request.backend,
        )
        if encoder.why_not_ragged is not None:
            self._note(f"extract takes these recordings one by one: {encoder.why_not_ragged}")
        exact, waveforms = self._exact.alone.stages, [sample.waveform for sample in self._samples]
        together = _layers(encoder.extract(waveforms, layers=("all",)))
        symbols = {} if head is None else {"logits": [head(x.to(encoder.device)).cpu() for x in together["final"]]}
        self._found += comparing.compare_stages(dtype, "extract", {**together, **symbols}, theirs, exact)
        if dtype == "float32":
            if symbols:
                self._found.append(comparing.compare_symbols("extract", symbols, theirs, exact))
            alone = _layers([encoder.extract([waveform], layers=("all",))[0] for waveform in waveforms])
            backwards = _layers(encoder.extract(waveforms[::-1], layers=("all",))[::-1])
            for order, found in (("in order", together), ("backwards", backwards)):
                self._found += comparing.compare_batch(order, found, alone, theirs, exact)
        self._advance(DTYPE_COST[dtype] * EXTRACT)

    def _climb_stock(self, model: Any, inputs: Sequence[Tensor]) -> Theirs:
        alone = runners.climb_alone(model, inputs)
        is_alone = runners.padding_is_alone(model, self._request.backend)
        padded = alone if is_alone else runners.climb_together(model, inputs, alone.shapes)
        weights = self._weights(model, inputs, alone.stages)
        if is_alone:  # the second half is that of the padded batch
            weights = {stage: found[: len(found) // 2] * 2 for stage, found in weights.items()}
        return Theirs(alone, padded, weights)

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
        """What padding does to stock's features; None where no recording is padded."""
        alone = self._exact.alone
        together = runners.stages_together(model, inputs, alone.shapes)["final"]
        apart = [distance([one], [other]) for one, other in zip(together, alone.stages["final"], strict=True)]
        sizes = [len(one) for one in inputs]
        padded = [number for number, size in enumerate(sizes) if size < max(sizes)]
        if not padded:
            return None
        worst = max(padded, key=lambda number: apart[number][1])
        names = [sample.id for sample in self._samples]
        longest = names[sizes.index(max(sizes))]
        return Padding(names[worst], longest, *apart[worst], runners.has_group_norm(model))

    def _compare_inputs(self, subject: WaveformModel) -> None:
        theirs = stock_inputs(subject.checkpoint, self._samples)
        if theirs is None:
            self._note(
                "the checkpoint comes without a preprocessor: its input is normalised as its family's default is"
            )
            return
        ours = [subject.prepare(sample.waveform).cpu() for sample in self._samples]
        exact = [subject.prepare(sample.waveform.double()).cpu() for sample in self._samples]
        self._found += comparing.compare_stages(
            "float32", "input", {"input": ours}, {"input": theirs}, {"input": exact}
        )

    def _compare_alone(self, dtype: str, model: Any, inputs: Sequence[Tensor], theirs: Theirs) -> None:
        runners.become_ours(model, self._request.backend)
        ours = runners.climb_alone(model, inputs)
        self._compare_climbs(dtype, "alone", model, ours, theirs.alone, self._exact.alone)

    def _compare_padded(self, dtype: str, model: Any, inputs: Sequence[Tensor], theirs: Theirs) -> None:
        runners.become_ours(model, self._request.backend, unpad=True)
        ours = runners.climb_together(model, inputs, theirs.alone.shapes)
        if theirs.padded is not theirs.alone:
            self._note("the padded batch is compared with stock's padded batch, which is not what recordings are alone")
        self._compare_climbs(dtype, "padded", model, ours, theirs.padded, self._exact.padded)
        weights = self._weights(model, inputs, theirs.alone.stages)
        exact, stock = self._exact.weights, theirs.weights
        if all(torch.equal(one, one[:1].expand_as(one)) and len(one) > 1 for block in exact.values() for one in block):
            self._note("stock gives attention weights that are averaged over heads: ours are averaged to compare them")
            weights, stock, exact = _averaged(weights), _averaged(stock), _averaged(exact)
        self._found += comparing.compare_stages(dtype, "weights", weights, stock, exact)

    def _compare_climbs(self, dtype: str, side: str, model: Any, ours: Climb, theirs: Climb, exact: Climb) -> None:
        self._found += comparing.compare_stages(dtype, side, ours.stages, theirs.stages, exact.stages)
        if dtype == "float32" and hasattr(model, "lm_head"):
            self._found.append(comparing.compare_symbols(side, ours.stages, theirs.stages, exact.stages))
        self._found += comparing.compare_gradients(dtype, side, ours, theirs, exact, stages.stages_of_parameters(model))

    def _weights(self, model: Any, inputs: Sequence[Tensor], stages: Stages) -> dict[str, list[Tensor]]:
        """Attention weights of the shortest recordings. stages: of each recording alone."""
        frames = [len(layer) for layer in stages["layer_01"]]
        shortest = sorted(range(len(frames)), key=frames.__getitem__)[:WEIGHED]
        chosen = [inputs[number] for number in shortest], [frames[number] for number in shortest]
        return runners.attention_weights(model, *chosen)

    def _note(self, text: str) -> None:
        self._notes[text] = None


def _layers(features: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Features of recordings -> layer -> those of each."""
    return {name: [one[name].cpu() for one in features] for name in features[0]}


def _averaged(weights: Stages) -> dict[str, list[Tensor]]:
    """[H, T, T] -> [T, T], the mean over heads."""
    return {stage: [one.mean(0) for one in block] for stage, block in weights.items()}
