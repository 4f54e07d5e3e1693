"""`suite=attention`: our layer against those of torch and Hugging Face, on the same weights and hidden states."""

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.benchmarks.measurement import available_bytes, peak_bytes, seconds, steady_allocator
from w2v_attn.benchmarks.results import run_environment
from w2v_attn.dtypes import DTYPES

REFERENCE = "Hugging Face sdpa"
PASSES = ("forward", "forward+backward")
# Peers that keep P, its dropout mask and their gradients have about this many tensors of size T² in memory.
QUADRATIC_COPIES = 6
MIN_SECONDS, MAX_ROUNDS = 4.0, 101


@dataclass(frozen=True)
class TimedLayer:
    """A layer and how it is called.

    Attributes:
        quadratic: Whether it keeps tensors of size T².
    """

    name: str
    ours: bool
    layer: nn.Module
    call: Callable[[nn.Module, Tensor], Tensor]
    quadratic: bool


@dataclass(frozen=True)
class AttentionResult:
    """One line of the report: times in milliseconds, peak memory in MiB, error against Hugging Face's sdpa."""

    contender: str
    ours: bool
    frames: int
    dropout: float
    what: str
    median_ms: float
    least_ms: float
    most_ms: float
    peak_mib: float | None
    max_abs_error: float | None


def run(
    *,
    frames: Sequence[int],
    channels: int,
    heads: int,
    batch: int,
    dropouts: Sequence[float],
    rounds: int,
    device: torch.device,
    dtype: str,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Return the report: run environment, settings and figures. log: called with a line for each step."""
    report = {
        "suite": "attention",
        **run_environment(device),
        "settings": {"channels": channels, "heads": heads, "batch": batch, "dtype": dtype, "rounds": rounds},
        "figures": [],
        "skipped": [],
    }
    for dropout in dropouts:
        contenders = list(_contenders(channels, heads, dropout, device, DTYPES[dtype]))
        for num_frames in frames:
            fitting = []
            for contender in contenders:
                need = _quadratic_bytes(contender, batch, heads, num_frames, DTYPES[dtype])
                if need < 0.7 * available_bytes(device):
                    fitting.append(contender)
                else:
                    report["skipped"].append(f"{contender.name} at T = {num_frames}: would need {need / 2**30:.0f} GiB")
                    log(f"skipped: {report['skipped'][-1]}")
            log(f"T = {num_frames}, dropout {dropout}: {rounds} rounds of {len(fitting)} layers")
            x = torch.randn(batch, num_frames, channels, device=device, dtype=DTYPES[dtype])
            # Dropout is active in training only, so a forward alone is not timed with it.
            for what in PASSES if dropout == 0 else PASSES[1:]:
                report["figures"] += [asdict(f) for f in _measure(fitting, x, dropout, what, rounds, device)]
    return report


def _contenders(
    channels: int, heads: int, dropout: float, device: torch.device, dtype: torch.dtype
) -> Iterator[TimedLayer]:
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Attention

    torch.manual_seed(0)
    origin = MultiHeadSelfAttention(channels, heads, bias_initializer="narrow_normal")
    weights = origin.state_dict()
    drops_on_cpu = dropout > 0 and device.type == "cpu"

    for backend in ("tiled", "sdpa"):
        if backend == "sdpa" and drops_on_cpu:
            continue
        ours = MultiHeadSelfAttention(channels, heads, dropout=dropout, backend=backend)
        ours.load_state_dict(weights)
        yield TimedLayer(f"w2v_attn {backend}", True, ours.to(device, dtype), lambda m, x: m(x), False)
    for implementation in ("eager", "sdpa"):
        config = Wav2Vec2Config()
        config._attn_implementation = implementation
        theirs = Wav2Vec2Attention(channels, heads, dropout=dropout, config=config)
        theirs.load_state_dict(weights)
        quadratic = implementation == "eager" or drops_on_cpu
        yield TimedLayer(
            f"Hugging Face {implementation}", False, theirs.to(device, dtype), lambda m, x: m(x)[0], quadratic
        )
    stock = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
    with torch.no_grad():
        stock.in_proj_weight.copy_(torch.cat([weights[f"{p}_proj.weight"] for p in "qkv"]))
        stock.in_proj_bias.copy_(torch.cat([weights[f"{p}_proj.bias"] for p in "qkv"]))
        stock.out_proj.load_state_dict({k: weights[f"out_proj.{k}"] for k in ("weight", "bias")})
    yield TimedLayer(
        "torch.nn.MultiheadAttention",
        False,
        stock.to(device, dtype),
        lambda m, x: m(x, x, x, need_weights=False)[0],
        True,
    )


def _quadratic_bytes(contender: TimedLayer, batch: int, heads: int, num_frames: int, dtype: torch.dtype) -> int:
    if not contender.quadratic:
        return 0
    return QUADRATIC_COPIES * batch * heads * num_frames**2 * dtype.itemsize


def _measure(
    contenders: list[TimedLayer], x: Tensor, dropout: float, what: str, rounds: int, device: torch.device
) -> Iterator[AttentionResult]:
    """Yield the results of interleaved rounds after a warm-up round, then measure errors and memory."""
    calls = {c.name: _call(c, x, what) for c in contenders}
    with steady_allocator():
        one_round = sum(seconds(call, device) for call in calls.values())
        times: dict[str, list[float]] = {name: [] for name in calls}
        shuffled = random.Random(0)  # another order each round: no layer always runs after the same one
        # Short calls are noisier and cheap: more rounds.
        for _ in range(max(rounds, min(MAX_ROUNDS, int(MIN_SECONDS / one_round)))):
            for name in shuffled.sample(list(calls), len(calls)):
                times[name].append(1e3 * seconds(calls[name], device))
    gc.collect()
    stock = next((c for c in contenders if c.name == REFERENCE), None)
    reference = None if stock is None or dropout > 0 else _result(stock, x, what)
    for c in contenders:
        error = None
        if reference is not None:
            error = (_result(c, x, what) - reference).abs().max().item()
        peak = peak_bytes(calls[c.name], device)
        spread = times[c.name]
        yield AttentionResult(
            c.name,
            c.ours,
            x.shape[1],
            dropout,
            what,
            statistics.median(spread),
            min(spread),
            max(spread),
            None if peak is None else peak / 2**20,
            error,
        )


def _call(contender: TimedLayer, x: Tensor, what: str) -> Callable[[], Tensor]:
    contender.layer.train(what != "forward")  # visits all modules: not part of the timed call

    def forward() -> Tensor:
        with torch.no_grad():
            return contender.call(contender.layer, x)

    def forward_backward() -> Tensor:
        contender.layer.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_()
        y = contender.call(contender.layer, leaf)
        y.backward(x if y.shape == x.shape else torch.ones_like(y))
        assert leaf.grad is not None
        return leaf.grad

    return forward if what == "forward" else forward_backward


def _result(contender: TimedLayer, x: Tensor, what: str) -> Tensor:
    """Return the output of a layer, or the gradient of its input."""
    return _call(contender, x, what)().float()


def tables(report: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield (title, header, rows) for each pass and dropout rate; ratios are to the best peer, above 1 is faster."""
    figures = report["figures"]
    header = ("layer", "T", "ms (min … max)", "× best peer", "peak MiB", "KiB per frame", "max abs difference")
    for what, dropout in dict.fromkeys((f["what"], f["dropout"]) for f in figures):
        rows = []
        chosen = [f for f in figures if (f["what"], f["dropout"]) == (what, dropout)]
        for frames in dict.fromkeys(f["frames"] for f in chosen):
            here = [f for f in chosen if f["frames"] == frames]
            peers = [f["median_ms"] for f in here if not f["ours"]]
            for f in here:
                peak, error = f["peak_mib"], f["max_abs_error"]
                rows.append(
                    (
                        f["contender"],
                        str(frames),
                        f"{f['median_ms']:.2f} ({f['least_ms']:.2f} … {f['most_ms']:.2f})",
                        f"{min(peers) / f['median_ms']:.2f}" if peers else "–",
                        "–" if peak is None else f"{peak:.0f}",
                        "–" if peak is None else f"{1024 * peak / frames:.1f}",
                        "–" if error is None else f"{error:.1e}",
                    )
                )
        title = (
            f"{what}, dropout {dropout:g} ({report['device']}, {report['threads']} threads, torch {report['torch']})"
        )
        yield title, header, rows
