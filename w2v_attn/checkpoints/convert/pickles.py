"""Files of `torch.save` -> tensors and plain values. Nothing that a pickle names is ever imported, called or built.

torch's own reader of weights (`weights_only=True`) does the reading, in the zip format and in the one before it. It
refuses every class it does not know, and fairseq's checkpoints are full of them: `argparse.Namespace`, OmegaConf's
containers, dictionaries, enumerations. For their names, and for no others, a stand-in is put there that keeps what it
is given and does nothing; afterwards stand-ins become dictionaries, lists and strings. On other names torch decides.
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

# NameTable that get a stand-in: these, and all below these packages.
INERT_NAMES = frozenset(
    "argparse.Namespace operator.getitem _operator.getitem builtins.dict builtins.list builtins.tuple builtins.str "
    "builtins.int builtins.float builtins.bool builtins.bytes builtins.object".split()
)
INERT_PACKAGES = ("fairseq.", "omegaconf.", "typing.", "pathlib.", "enum.", "numpy.")
# NameTable that torch's reader may know; it decides.
TORCH_DECIDES = ("torch.", "collections.", "_codecs.", "builtins.set", "builtins.bytearray", "builtins.complex")

# torch keeps the names that have stand-ins for the whole process.
_reading = threading.Lock()

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how the two forms begin


class StandIn:
    """In the place of an object of a class that is not to run: what it was called with, and the state it was given."""

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
    """Whether a file that starts so is one of `torch.save`."""
    return start.startswith((ZIP, PICKLE))


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds: dictionaries, lists, numbers, strings, and tensors in the memory of the CPU.

    An `argparse.Namespace`, a container of OmegaConf or another object of `INERT_…` is a dictionary of its attributes,
    a member of an enumeration its value, a tuple a list.

    Raises:
        CheckpointError: the pickle names anything else, or the file is damaged. Nothing of it was run.
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
            f"{path} is damaged, cut short, or no file of torch.save ({first_line(error)}). Fetch the file again"
        ) from error


def _refusal(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} was refused: it is a pickle that holds more than tensors and plain values, which could run code when "
        f"loaded ({why}). Nothing of it was run. Ask for a safetensors file of this checkpoint"
    )


def _plain_dictionary(*_: object) -> dict[Any, Any]:
    """In the place of `collections.defaultdict`, whose factory is of no use here."""
    return {}


def _names(path: Path) -> Iterator[str]:
    """The names `module.name` of all classes and functions in the pickles of a file, as Python 3 knows them."""
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
    """Stand-ins as plain values, at any depth; what stands in several places is turned once."""

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
            return None  # what it says of types
        return self.of(state)
