"""The rules of the house: imports go one way, and the layer knows torch alone."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "w2v_attn"
# A package may import those further right, never the other way round.
ORDER = (
    "cli benchmarks extraction features training transcription verification encoder patching checkpoints attention ops"
).split()
ALONE = {
    "audio",
    "corpus",
    "runs",
    "run_error",
    "dtypes",
    "feature_files",
    "whole_files",
    "folders",
    "start_and_end",
    "torchaudio_import",
}  # none of the above


def modules():
    return [
        path
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.name not in ("__init__.py", "__main__.py")
    ]


def room(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(path):
    """Full names of the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def our_rooms(path):
    return {name.split(".")[1] for name in imports(path) if name.startswith("w2v_attn.") and name.count(".") >= 1}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    here = room(path)
    for there in our_rooms(path) & {*ORDER, *ALONE}:
        if there in (here, "run_error", "whole_files") or (there in ALONE and here in ORDER):
            continue
        # They feed a model with the recordings of a corpus, and write what comes out.
        if here in ("runs", "feature_files") and there in ALONE:
            continue
        assert here in ORDER, f"{here} may import none of the others, but imports {there}"
        assert ORDER.index(here) < ORDER.index(there), f"{here} may not import {there}"


def test_every_room_has_its_place():
    assert {room(path) for path in modules()} == {*ORDER, *ALONE}


@pytest.mark.parametrize(
    "path",
    sorted(path for room in ("attention", "ops") for path in (PACKAGE / room).rglob("*.py")),
    ids=lambda path: path.name,
)
def test_the_layer_knows_torch_alone(path):
    known = {"torch", "w2v_attn", *sys.stdlib_module_names}
    if path.name in ("fusions.py", "fusion_kernels.py", "triton_kernels.py"):  # imported when one of them is to run
        known.add("triton")
    assert {name.split(".")[0] for name in imports(path)} <= known


def test_the_layer_and_the_encoder_import_without_hydra_soundfile_rich_and_triton():
    missing = "hydra omegaconf soundfile soxr rich torchaudio av triton".split()
    code = f"""
import sys
for name in {missing!r}: sys.modules[name] = None
import w2v_attn, w2v_attn.attention.backends.triton_launch, w2v_attn.encoder.encoder, w2v_attn.patching.replace
w2v_attn.MultiHeadSelfAttention(8, 2); w2v_attn.load_encoder; w2v_attn.replace_attention
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_app_and_its_commands_print_and_they_alone_know_hydra(path):
    """Hydra is the app's, and of its configurations only their values are known further in."""
    if room(path) != "cli":
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
    known = {
        "cli/app.py": {"hydra", "omegaconf"},
        "cli/composed_values.py": {"hydra", "omegaconf"},
        "cli/hydra_grammar.py": {"hydra", "omegaconf"},
        "cli/values.py": {"omegaconf"},
    }
    foreign = {name.split(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    assert foreign <= known.get(path.relative_to(PACKAGE).as_posix(), set())
