"""Parts of the package that not everybody installs."""

from importlib.util import find_spec


def need(extra: str, *modules: str) -> None:
    """Raises ValueError where modules of an extra are not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"this command needs {', '.join(missing)}: pip install 'w2v_attn[{extra}]'")
