"""The wheel carries what the package needs, and runs outside the checkout."""

import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

pytest.importorskip("build")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_configuration_and_data_are_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "data" / "tiny").iterdir()]:
        assert f"w2v_attn/{path.relative_to(ROOT).as_posix()}" in names
    assert sum(name.endswith(".flac") for name in names) >= 30
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    assert wheel.stat().st_size < 20 << 20


@pytest.mark.slow
def test_the_wheel_extracts_features_from_its_own_copy_of_everything(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import w2v_attn\n"
        f"assert w2v_attn.__file__.startswith({str(site)!r}), w2v_attn.__file__\n"
        "from w2v_attn.cli.app import main; main(['extract', 'output=out'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) >= 30
