"""Safe reading of `torch.save` files: tensors and plain values; nothing that a pickle names is imported or called.

torch's reader (`weights_only=True`) reads the file, in the zip format and in the older one. It refuses unknown classes,
and fairseq's checkpoints contain many: `argparse.Namespace`, OmegaConf containers, dictionaries, enumerations. These
names, and no others, are replaced by an inert stand-in that stores its arguments and does nothing; afterwards stand-ins
become dictionaries, lists and strings. All other names are left to torch.
"""

import pickle
import pickletools
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

# Names that are replaced by a stand-in: these, and all in these packages.
INERT_NAMES = frozenset(
    "argparse.Namespace operator.getitem _operator.getitem builtins.dict builtins.list builtins.tuple builtins.str "
    "builtins.int builtins.float builtins.bool builtins.bytes builtins.object".split()
)
INERT_PACKAGES = ("fairseq.", "omegaconf.", "typing.", "pathlib.", "enum.", "numpy.")
# Names that are left to torch's reader.
TORCH_DECIDES = ("torch.", "collections.", "_codecs.", "builtins.set", "builtins.bytearray", "builtins.complex")

# torch registers stand-ins for the whole process, so only one thread reads at a time.
_reading = threading.Lock()

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of the two formats


class StandIn:
    """An inert replacement of an object whose class must not run: its arguments and its state."""

    origin = ""

    def __new__(cls, *args: object, **_: object) -> "StandIn":
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *args: object, **_: object) -> None:
        self.args: tuple[object, ...]
        self.state: object

    def __setstate__(self, state: object) -> None:
        self.state = state


def is_pickle(start: bytes) -> bool:
    """Return whether a file with these first bytes was written by `torch.save`."""
    return start.startswith((ZIP, PICKLE))


def read_pickle(path: Path) -> Any:
    """Return the contents of a `torch.save` file: dictionaries, lists, numbers, strings, and tensors in CPU memory.

    An `argparse.Namespace`, an OmegaConf container or another object of `INERT_…` becomes a dictionary of its
    attributes, a member of an enumeration its value, a tuple a list.

    Raises:
        CheckpointError: The pickle names anything else, or the file is damaged. Nothing of it was run.
    """
    try:
        names = set(_names(path))
        inert = {name for name in names if name in INERT_NAMES or name.startswith(INERT_PACKAGES)}
        refused = sorted(name for name in names - inert if not name.startswith(TORCH_DECIDES))
        if refused:
            raise _refusal(path, f"it names {', '.join(refused[:8])}")
        stand_ins: list[Any] = [(type("StandIn", (StandIn,), {"origin": name}), name) for name in sorted(inert)]
        stand_ins.append((_plain_dictionary, "collections.defaultdict"))
        with _reading, torch.serialization.safe_globals(stand_ins):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return _Plain().of(found)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        said = next((line for line in reversed(lines) if "GLOBAL" in line or "Unsupported" in line), lines[0])
        raise _refusal(path, said.strip()[:300]) from error
    except Exception as error:  # of the zip, of torch's reader in C++ and in Python, of its opcodes
        raise CheckpointError(
            f"{path} is damaged, cut short, or no file of torch.save ({first_line(error)}). Download the file again"
        ) from error


def _refusal(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} was refused: it is a pickle that contains more than tensors and plain values, which could run code "
        f"when loaded ({why}). Nothing of it was run. Use a safetensors file of this checkpoint"
    )


def _plain_dictionary(*_: object) -> dict[Any, Any]:
    """Replace `collections.defaultdict`; its factory is not needed."""
    return {}


def _names(path: Path) -> Iterator[str]:
    """Yield `module.name` of all classes and functions in the pickles of a file, by their Python 3 names."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith("data.pkl"):
                    with archive.open(entry) as file:
                        yield from _names_in_pickle(file)
    else:
        with path.open("rb") as file:
            for _ in range(4):  # a magic number, the version, the machine, and the object; tensors follow
                yield from _names_in_pickle(file)


def _names_in_pickle(file: Any) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            assert isinstance(argument, str)
            module, name = argument.split(" ", 1)
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"


class _Plain:
    """Conversion of stand-ins to plain values, at any depth; a shared object is converted once."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        if not isinstance(value, StandIn | dict | list | tuple):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = self._made(value)
        return self._done[id(value)]

    def _made(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            return self._of_stand_in(value)
        if isinstance(value, dict):
            return {self.of(key): self.of(item) for key, item in value.items()}
        return [self.of(item) for item in value]

    def _of_stand_in(self, value: StandIn) -> Any:
        state = value.state[0] if isinstance(value.state, tuple) else value.state
        if value.origin.startswith("pathlib."):
            return "/".join(str(part) for part in value.args)
        if not isinstance(state, dict):  # a member of an enumeration, a type
            return self.of(value.args[0]) if len(value.args) == 1 else value.origin
        if value.origin.startswith("omegaconf."):
            for kept in ("_content", "_val"):  # of a container, of a node
                if kept in state:
                    return self.of(state[kept])
            return None  # type information
        return self.of(state)
