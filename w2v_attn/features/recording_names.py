"""Names that mean a recording: its id, or the id without its extension, its folders, or both."""

from collections.abc import Iterable


def ids_by_name(ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return name -> the ids that it may mean; a more specific name takes precedence.

    `a/jfk.flac` has the names `a/jfk.flac`, `a/jfk`, `jfk.flac` and `jfk`; the last two may mean several recordings.
    """
    whole: dict[str, tuple[str, ...]] = {}
    stems: dict[str, tuple[str, ...]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for id in ids:
        whole[id] = (id,)
        folder, slash, name = id.rpartition("/")
        stem = name.rpartition(".")[0] or name
        key = f"{folder}{slash}{stem}"
        stems[key] = (*stems.get(key, ()), id)
        for key in {name, stem}:
            names[key] = (*names.get(key, ()), id)
    return names | stems | whole
