"""An import hook that lets `import torchaudio` succeed where its native library cannot be loaded.

On Linux, PyPI's torchaudio is linked against CUDA libraries. Beside a CPU build of torch they are missing, and
`import torchaudio` raises OSError, `import transformers` with it. torchaudio itself can run without its native library:
`_load_lib` then returns False, and its Python parts work. The hook makes it return False also where the library is
installed but its dependencies are not. Where the library loads, nothing changes.
"""

import logging
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

logger = logging.getLogger(__name__)

LOADING_MODULE = "torchaudio._extension.utils"


def install_import_hook() -> None:
    """Install the hook for the import of torchaudio. This imports nothing and may be called repeatedly."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """A finder that wraps the loader of the torchaudio module that loads native libraries."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != LOADING_MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, stock: Loader):
        self._stock = stock

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._stock.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._stock.exec_module(module)
        stock_load: Callable[[str], bool] | None = getattr(module, "_load_lib", None)
        if stock_load is not None:
            module._load_lib = lambda lib: _load_or_explain(stock_load, lib)  # type: ignore[attr-defined]


def _load_or_explain(stock_load: Callable[[str], bool], lib: str) -> bool:
    """Call torchaudio's `_load_lib`, but return False where the library needs others that are not installed."""
    try:
        return stock_load(lib)
    except OSError as error:
        import torch

        cause = error.__cause__ or error
        logger.info("torchaudio runs without its native library %s (%s)", lib, cause)
        # _torchaudio and libtorchaudio both register their operators under torch.ops.torchaudio.
        namespace = lib.removeprefix("lib").lstrip("_")
        setattr(torch.ops, namespace, _MissingOperators(namespace, str(cause)))
        return False


class _MissingOperators(types.ModuleType):
    """A placeholder for the operators of a native library, whose use raises an error with the reason."""

    def __init__(self, namespace: str, cause: str):
        super().__init__(namespace)
        self._cause = cause

    def __getattr__(self, operator: str) -> object:
        if operator.startswith("__"):
            raise AttributeError(operator)
        raise RuntimeError(
            f"torchaudio's native operator {self.__name__}.{operator} is not available: its library could not be "
            f"loaded ({self._cause}). PyPI's torchaudio needs a CUDA build of torch for its native parts; its pure "
            "Python parts work"
        )
