"""`changed_values`: the values that overrides give to the keys of a command, as Hydra composes them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import initialize_config_dir
from omegaconf import OmegaConf

from w2v_attn import folders


def changed_values(command: str, overrides: Sequence[str]) -> Mapping[str, str]:
    """Return the values, as they are written, of the keys whose values some overrides change."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folders.find("conf")), version_base="1.3"):
        default, given = (dict(_written(compose(command, given))) for given in ([], list(overrides)))
    return {key: text for key, text in given.items() if default.get(key) != text}


def _written(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each key."""
    return _walk(OmegaConf.to_container(config, resolve=False), "")


def _walk(node: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for key, below in node.items():
            yield from _walk(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, "null" if node is None else str(node).lower() if isinstance(node, bool) else str(node)
