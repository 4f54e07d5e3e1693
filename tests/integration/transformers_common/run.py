"""transformers' own common model tests, over every family, with our attention in each model that they build.

    python tests/integration/transformers_common/run.py                     # needs PyPI; five minutes
    python tests/integration/transformers_common/run.py --attention stock   # without ours: whose is a failure?
    python tests/integration/transformers_common/run.py --attention unpad -k wavlm

The tests are those of the installed transformers, from its source distribution; they are run as they are. Nobody's
models are in it, so `families.py` says which to build.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
NEEDED = ("tests/test_modeling_common.py", "tests/test_configuration_common.py")
# What these files import from others, and none of our families uses.
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}


def main() -> int:
    """Fetches the tests, puts our models beside them, and runs them -> pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", choices=("ours", "unpad", "stock"), default="ours")
    parser.add_argument("-k", default="", help="pytest's expression: of families and tests")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="transformers-common-") as folder:
        prepare(Path(folder))
        paths = [ROOT, Path(folder) / "site", os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
            "HF_HUB_OFFLINE": "1",
            "W2V_ATTN_COMMON": chosen.attention,
        }
        options = [
            "-q",
            "--no-header",
            "-W",
            "ignore",
            "-p",
            "no:cacheprovider",
            "-c",
            "/dev/null",
            "--rootdir",
            folder,
        ]
        command = [sys.executable, "-m", "pytest", *options, "-k", chosen.k, "tests/test_families.py"]
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def prepare(folder: Path) -> None:
    """Lays out `folder` as the tests expect it: themselves, what they import, and our families."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), "parameterized"], check=True)
    source = [*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder)]
    subprocess.run([*source, f"transformers=={version('transformers')}"], check=True)
    (distribution,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(distribution) as archive:
        for member in archive.getmembers():
            name = member.name.partition("/")[2]
            if name in NEEDED:
                (folder / name).parent.mkdir(exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise SystemExit(
            f"the source distribution of transformers {version('transformers')} has no {', '.join(missing)}"
        )
    for name, text in STAND_INS.items():
        file = folder / "tests" / name
        file.parent.mkdir()
        file.write_text(text)
        (file.parent / "__init__.py").touch()
    (folder / "tests" / "__init__.py").touch()
    (folder / "conftest.py").write_bytes((HERE / "swap.py").read_bytes())
    (folder / "tests" / "test_families.py").write_bytes((HERE / "families.py").read_bytes())


if __name__ == "__main__":
    sys.exit(main())
