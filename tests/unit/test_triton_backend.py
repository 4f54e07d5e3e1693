"""The Triton core against its definition, in Triton's interpreter, or compiled where there is a GPU."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("triton")

from w2v_attn.attention.backends import triton_launch
from w2v_attn.attention.backends.triton_launch import KernelTiles, TileSizes
from w2v_attn.ops import triton_support
from w2v_attn.ops.triton_support import is_interpreted

SCALE = 0.6
BIASES = ("none", "table", "gated table")


@dataclass(frozen=True)
class Setting:
    """Where the laws are held, and on what sizes."""

    device: str
    lengths: tuple[int, ...]
    H: int
    D: int
    E: int
    R: int


# Tiles have 32 to 128 frames: recordings on both sides of one, of two, and empty ones first, between and last.
SETTINGS = [
    pytest.param(
        Setting("cpu", (0, 37, 1, 0, 70, 0), H=2, D=5, E=19, R=11),
        id="interpreted",
        marks=pytest.mark.skipif(not is_interpreted(), reason="needs TRITON_INTERPRET=1 before triton is imported"),
    ),
    *(
        pytest.param(
            Setting("cuda", (0, 499, 1, 0, 50, 128, 1501, 0), H=3, D=D, E=E, R=R),
            id=f"compiled-{D}-{E}",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available() or is_interpreted(), reason="needs a GPU, and TRITON_INTERPRET unset"
            ),
        )
        for D, E, R in ((64, 64, 320), (80, 24, 7), (5, 19, 2000), (256, 256, 100))
    ),
]


@pytest.fixture(params=SETTINGS)
def setting(request):
    torch.manual_seed(0)
    return request.param


@dataclass
class Case:
    """The tensors of one call, and how it is made."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    do: torch.Tensor
    table: torch.Tensor | None
    gate: torch.Tensor | None
    lengths: tuple[int, ...]

    @property
    def offsets(self):
        return torch.tensor([0, *self.lengths], device=self.q.device).cumsum(0).int()

    @property
    def recordings(self):
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        return [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]

    def to(self, dtype):
        q, k, v, do = (x.to(dtype) for x in (self.q, self.k, self.v, self.do))
        return Case(q, k, v, do, self.table, self.gate, self.lengths)

    def options(self, **options):
        longest = max(self.lengths, default=0)
        return {"max_frames": longest, "scale": SCALE, "table_HR": self.table, "gate_NH": self.gate, **options}

    def forward(self, **options):
        return triton_launch.forward_packed(self.q, self.k, self.v, self.offsets, **self.options(**options))

    def run(self, **options):
        """[o, lse, dq, dk, dv] and dtable and dgate where there are such."""
        o, lse = self.forward(**options)
        return [
            o, lse,
            *(d for d in triton_launch.backward_packed(
                self.do, self.q, self.k, self.v, o, lse, self.offsets, **self.options(**options)
            ) if d is not None),
        ]  # fmt: skip


def make_case(setting, bias="none", lengths=None):
    lengths = setting.lengths if lengths is None else lengths
    N, H = sum(lengths), setting.H
    q, k = torch.randn(2, N, H, setting.D, device=setting.device) * (2 / setting.D**0.5)
    v, do = torch.randn(2, N, H, setting.E, device=setting.device)
    table = torch.randn(H, 2 * setting.R + 1, device=setting.device) if bias != "none" else None
    gate = torch.randn(N, H, device=setting.device) if bias == "gated table" else None
    return Case(q, k, v, do, table, gate, lengths)


def definition(case, dtype, keep_NHT=None, keep_rate=1.0):
    """What `Case.run` returns, by torch's operations in `dtype` and torch's derivatives, recording by recording.

    keep_NHT: R of dropout, 1 where kept, for as many keys as the longest recording has.
    """
    given = [x for x in (case.q, case.k, case.v, case.table, case.gate) if x is not None]
    leaves = [x.detach().to(dtype).requires_grad_() for x in given]
    q, k, v, table, gate = (*leaves, None, None)[:5]
    outputs, sums = [], []
    for part in case.recordings:
        s_HIJ = torch.einsum("ihd,jhd->hij", q[part], k[part]) * SCALE
        if table is not None:
            frames, R = torch.arange(s_HIJ.shape[-1]), table.shape[1] // 2
            bias_HIJ = table[:, (frames[None] - frames[:, None]).clamp(-R, R) + R]
            s_HIJ = s_HIJ + (bias_HIJ if gate is None else gate[part].T[:, :, None] * bias_HIJ)
        p_HIJ = s_HIJ.softmax(-1)
        if keep_NHT is not None:
            p_HIJ = p_HIJ * keep_NHT[part, :, : p_HIJ.shape[-1]].transpose(0, 1) / keep_rate
        outputs.append(torch.einsum("hij,jhe->ihe", p_HIJ, v[part]))
        sums.append(s_HIJ.logsumexp(-1))
    o = torch.cat(outputs)
    return [o.detach(), torch.cat(sums, 1).detach(), *torch.autograd.grad(o, leaves, case.do.to(dtype))]


def drawn_mask(setting, lengths, seed, dropout):
    """R, as the kernel shows it: all scores are equal, and values are the rows of an identity."""
    N, longest = sum(lengths), max(lengths)
    zeros = torch.zeros(N, setting.H, 16, device=setting.device)
    frame = torch.cat([torch.arange(length) for length in lengths]).to(setting.device)
    length_N = torch.repeat_interleave(torch.tensor(lengths), torch.tensor(lengths)).to(setting.device)
    parts = []
    for first in range(0, longest, triton_launch.MAX_CHANNELS):  # as many keys at a time as a value has channels
        keys = torch.arange(first, min(first + triton_launch.MAX_CHANNELS, longest), device=setting.device)
        v = (frame[:, None] == keys).float()[:, None].expand(-1, setting.H, -1)
        case = Case(zeros, zeros, v, v, None, None, lengths)
        parts.append(case.forward(dropout=dropout, seed=seed)[0])
    p_NHT = torch.cat(parts, -1) * length_N[:, None, None] * (1 - dropout)
    keep = p_NHT > 0.5
    torch.testing.assert_close(p_NHT, keep.float(), rtol=0, atol=1e-4)  # dropped, or kept and scaled, and nothing else
    return keep, torch.arange(longest, device=setting.device) < length_N[:, None, None]


def assert_same(ours, theirs, tolerance=1e-5):
    """Every number differs by at most `tolerance` times the largest of its tensor, or times 1."""
    for our, their in zip(ours, theirs, strict=True):
        bound = tolerance * their.abs().amax().clamp(min=1.0).item() if their.numel() else 0.0
        torch.testing.assert_close(our.double(), their.double(), rtol=0, atol=bound)


# ------------------------------------------------------------------------------------------- the definition


@pytest.mark.parametrize("bias", BIASES)
def test_results_and_gradients_are_those_of_the_definition(setting, bias):
    case = make_case(setting, bias)
    ours = case.run()
    assert_same(ours, definition(case, torch.float64))
    assert len(ours) == 5 + BIASES.index(bias)
    assert all(x.dtype == torch.float32 for x in ours)


@pytest.mark.parametrize("number", range(2, 7))
def test_the_comparison_sees_a_gradient_that_is_a_thousandth_off(setting, number):
    case = make_case(setting, "gated table", lengths=(17, 3))
    ours, theirs = case.run(), definition(case, torch.float64)
    assert_same(ours, theirs)
    ours[number] = ours[number] * 1.001
    with pytest.raises(AssertionError):
        assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", ["none", "gated table"])
def test_in_half_precision_the_error_is_at_most_twice_torchs_own(setting, dtype, bias):
    case = make_case(setting, bias).to(dtype)
    exact, ours, theirs = definition(case, torch.float64), case.run(), definition(case, dtype)
    assert [x.dtype for x in ours] == [dtype, torch.float32, *[dtype] * 3, *[torch.float32] * 2][: len(ours)]
    for our, their, truth in zip(ours, theirs, exact, strict=True):
        assert (our.double() - truth).norm() <= 2 * (their.double() - truth).norm()


def test_a_radius_beyond_every_distance_and_one_of_nothing_work(setting):
    for R in (0, 1, 200):
        case = make_case(setting, "gated table", lengths=(40, 3))
        case.table = torch.randn(setting.H, 2 * R + 1, device=setting.device)
        assert_same(case.run(), definition(case, torch.float64))


# ------------------------------------------------------------------------------------------------ recordings


def test_recordings_do_not_see_each_other(setting):
    case = make_case(setting, "gated table")
    before = case.run(dropout=0.2, seed=3)
    changed = next(part for part in case.recordings if part.stop - part.start > 30)
    for x in (case.q, case.k, case.v, case.do, case.gate):
        x[changed] = float("nan")
    after = case.run(dropout=0.2, seed=3)
    others = torch.ones(len(case.q), dtype=torch.bool, device=setting.device)
    others[changed] = False
    for name, x, y in zip("o lse dq dk dv dtable dgate".split(), before, after, strict=True):
        if name != "dtable":  # all recordings share it
            x, y = (x.T, y.T) if name == "lse" else (x, y)
            assert torch.equal(x[others], y[others]), name
            assert y[changed].isnan().all(), name


def test_a_recording_alone_is_to_the_last_bit_what_it_is_in_a_batch(setting):
    case = make_case(setting)
    batch = case.run()
    for part in case.recordings:
        alone = Case(*(x[part] for x in (case.q, case.k, case.v, case.do)), None, None, (part.stop - part.start,))
        for name, x, y in zip("o lse dq dk dv".split(), batch, alone.run(), strict=True):
            assert torch.equal(x[:, part] if name == "lse" else x[part], y), name


@pytest.mark.parametrize("lengths", [(33,) * 3, (64, 32), (1, 1, 1), (31, 64, 1, 65, 0, 32, 33)])
def test_both_numberings_of_tiles_reach_every_tile_once(setting, lengths):
    case = make_case(setting, lengths=lengths)
    ours = case.run()
    assert_same(ours, definition(case, torch.float64))
    # With a bound that is far off, recordings are searched for; without, uniform ones are not.
    for x, y in zip(ours, case.run(max_frames=10_000), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,), (0, 1, 0)])
def test_no_recordings_no_frames_and_one_frame_work(setting, lengths):
    case = make_case(setting, "gated table", lengths)
    o, lse, dq, dk, dv, dtable, dgate = case.run()
    assert torch.equal(o, case.v)  # a frame alone attends itself
    torch.testing.assert_close(dv, case.do)  # its probability is an exponential of a logarithm
    assert lse.shape == (setting.H, sum(lengths))
    assert_same([dq, dk, dtable, dgate], [torch.zeros_like(x) for x in (case.q, case.k, case.table, case.gate)])


def test_views_are_the_same_as_copies(setting):
    case = make_case(setting)
    N, H, D = case.q.shape
    E = setting.E
    wide = torch.cat([x.flatten(1) for x in (case.q, case.k, case.v)], 1)
    q, k, v = wide.split([H * D, H * D, H * E], 1)
    # Heads in the middle of a row, and heads that come before frames.
    views = Case(
        q.view(N, H, D), k.view(N, H, D), v.view(N, H, E), case.do.transpose(0, 1).contiguous().transpose(0, 1),
        None, None, case.lengths,
    )  # fmt: skip
    assert not views.v.is_contiguous()
    assert not views.do.is_contiguous()
    for ours, theirs in zip(views.run(), case.run(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_gradient_that_is_one_number_everywhere_works(setting):
    case = make_case(setting, lengths=(17, 3))
    case.do = torch.ones((), device=setting.device).expand(case.v.shape)
    assert_same(case.run(), definition(case, torch.float64))


# ------------------------------------------------------------------------------------------ tiles and dropout


@pytest.mark.slow
def test_tile_sizes_change_neither_results_nor_what_is_dropped(setting, monkeypatch):
    case = make_case(setting, "gated table")
    ours = case.run(dropout=0.3, seed=5)
    for rows, keys in ((16, 32), (32, 16)):
        tiles = TileSizes(rows, keys, 4, 1)
        monkeypatch.setattr(
            triton_launch, "_kernel_tiles", lambda *_, tiles=tiles: KernelTiles(tiles, tiles, tiles, tiles)
        )
        assert_same(case.run(dropout=0.3, seed=5), ours)


@pytest.mark.parametrize("bias", ["none", "gated table"])
def test_with_dropout_results_and_gradients_are_those_of_the_definition_under_the_same_mask(setting, bias):
    dropout, seed = 0.25, (1 << 62) - 1
    case = make_case(setting, bias)
    keep, _ = drawn_mask(setting, case.lengths, seed, dropout)
    assert_same(case.run(dropout=dropout, seed=seed), definition(case, torch.float64, keep, 1 - dropout))


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_entries_are_dropped_at_the_rate_that_was_asked_for_and_each_on_its_own(setting, dropout):
    keep, real = drawn_mask(setting, setting.lengths, 7, dropout)
    real = real.expand_as(keep)
    count = real.sum().item()
    deviation = (dropout * (1 - dropout) / count) ** 0.5
    assert abs(keep[real].float().mean().item() - (1 - dropout)) < 4 * deviation
    # Neighbours along rows, heads and keys, the latter also one random number apart, agree as often as chance has it.
    chance = (1 - dropout) ** 2
    for axis, step in ((0, 1), (1, 1), (2, 1), (2, 2), (2, 4), (2, 8)):
        a, b, a_real, b_real = (
            x.narrow(axis, start, x.shape[axis] - step) for x in (keep, real) for start in (0, step)
        )
        both = a_real & b_real
        agree = (a & b)[both].float().mean().item()
        assert abs(agree - chance) < 6 * (chance * (1 - chance) / both.sum().item()) ** 0.5, (axis, step)


def test_what_is_dropped_depends_on_every_bit_of_the_seed_and_on_nothing_but_the_place(setting):
    lengths = (40, 1)
    first, _ = drawn_mask(setting, lengths, 11, 0.5)
    assert torch.equal(first, drawn_mask(setting, lengths, 11, 0.5)[0])
    for bit in (0, 31, 32, 62):
        other, real = drawn_mask(setting, lengths, 11 ^ (1 << bit), 0.5)
        assert 0.4 < (first == other)[real.expand_as(first)].float().mean() < 0.6


# -------------------------------------------------------------------------------------------- what it needs


def test_what_it_cannot_do_is_told(monkeypatch):
    x = torch.zeros(3, 2, 8)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert triton_launch.kernels_unsupported_reason(x, x) == "the Triton kernels run on CUDA devices, got cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_launch.kernels_unsupported_reason(x, x) is None
    assert "got torch.float64" in triton_launch.kernels_unsupported_reason(x.double(), x)
    assert "at most 256 channels per head, got 257" in triton_launch.kernels_unsupported_reason(
        x, torch.zeros(3, 2, 257)
    )
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_launch.kernels_unsupported_reason(x, x) == "triton is not installed"


@pytest.mark.skipif(not is_interpreted(), reason="asks what a CPU with Triton's interpreter would say")
@pytest.mark.parametrize("compiler", [True, False])
def test_triton_is_taken_where_it_works_and_a_missing_compiler_is_told(compiler, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("Failed to find C compiler.\nMore of it.")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    if not compiler:
        monkeypatch.setattr(triton_support, "_is_right", fail)
    assert triton_support.is_available.__wrapped__(torch.device("cpu")) is compiler
    assert ("Failed to find C compiler." in caplog.text) is not compiler
    assert "More of it" not in caplog.text


COMPILE = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from w2v_attn.attention.backends import triton_launch as backend
from w2v_attn.attention.backends import triton_kernels

# What the host would launch is compiled for devices that need not be there.
def compile_it(kernel, programs, *arguments, **options):
    signature, constants, divisible = {}, {}, {}
    for number, name in enumerate(kernel.arg_names):
        value = arguments[number] if number < len(arguments) else options[name]
        if isinstance(value, torch.Tensor):
            short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32"}
            signature[name], divisible[(number,)] = "*" + short[value.dtype], [["tt.divisibility", 16]]
        elif value is None or number >= len(arguments):
            signature[name], constants[(number,)] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i64" if name == "seed" else "i32"
            if name.endswith(("_frame", "_head")):
                divisible[(number,)] = [["tt.divisibility", 16]]
    launch = {key: options[key] for key in options if key not in signature}
    source = ASTSource(kernel, signature, constants, divisible)
    # Products of float32 are the same code on both.
    capabilities = (89,) if "*fp32" == signature[kernel.arg_names[0]] else (89, 90)
    return {
        capability: triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch).metadata.shared
        for capability in capabilities
    }

pool = ThreadPoolExecutor(os.cpu_count())  # the compiler lets go of Python's lock
compiled = []
offsets = torch.tensor([0, 5], dtype=torch.int32)
for case in json.loads(sys.argv[1]):
    channels, dtype, bias = case

    def launch(kernel, *arguments, case=case, only=(bias == "none"), **options):
        if not only or kernel is triton_kernels.backward_rows_kernel:
            compiled.append((case, kernel.__name__, pool.submit(compile_it, kernel, *arguments, **options)))

    backend._launch = launch
    x = torch.zeros(5, 2, channels, dtype=getattr(torch, dtype))
    bias = {
        "bias": {"table_HR": torch.zeros(2, 7), "gate_NH": torch.zeros(5, 2)},
        "rows": {"rows_NHM": torch.zeros(5, 2, 7), "left": 4},
        "none": {},
    }[bias]
    options = dict(max_frames=5, scale=1.0, dropout=0.1, seed=1, **bias)
    o, lse = backend.forward_packed(x, x, x, offsets, **options)
    backend.backward_packed(x, x, x, x, o, lse, offsets, **options)
print(json.dumps([(case, name, future.result()) for case, name, future in compiled]))
"""
# Bytes of one program, by compute capability. 8.0 compiles to what 8.9 does, and has 163 KiB.
SHARED_MEMORY = {"89": 99 << 10, "90": 227 << 10}

# Tiles are those of 64, 128 or 256 channels in either dtype; without a bias only those of the backward of rows differ.
USUAL = (64, "bfloat16", "bias")
OTHERS = [*itertools.product((64, 128, 256), ("float32", "bfloat16"), ("bias", "none")), (16, "bfloat16", "bias")]
OTHERS.remove(USUAL)
OTHERS += [(64, "bfloat16", "rows"), (256, "float32", "rows")]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [pytest.param([USUAL], id="usual"), pytest.param(OTHERS, id="others")])
def test_kernels_compile_and_fit_the_shared_memory_of_every_device(cases):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}  # what was compiled before comes from Triton's cache
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(cases)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert len(compiled) == sum(1 if bias == "none" else 4 for _, _, bias in cases)
    for case, kernel, shared in compiled:
        assert shared.keys() == ({"89"} if case[1] == "float32" else {"89", "90"})
        assert all(most <= SHARED_MEMORY[capability] for capability, most in shared.items()), (case, kernel, shared)


@pytest.mark.skipif(not torch.cuda.is_available() or is_interpreted(), reason="needs a GPU")
def test_memory_is_linear_in_the_number_of_frames():
    def extra(frames):
        case = make_case(Setting("cuda", (frames,), H=2, D=64, E=64, R=10), "gated table").to(torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.run()
        return torch.cuda.max_memory_allocated() - before

    assert extra(16_384) < 2.2 * extra(8_192)
