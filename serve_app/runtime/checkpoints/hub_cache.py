"""The cache of the model hub on disk: models--OWNER--NAME/{refs,snapshots,blobs}.

Only its layout is known here, so that a path into it works as a path. No network, no hub library.
"""

from pathlib import Path

from serve_app.core.errors import CheckpointError

_PREFIX, _SEPARATOR = "models--", "--"
_SNAPSHOTS = "snapshots"


def snapshot_folder(path: Path) -> Path:
    """Return the snapshot that a repository's folder in the cache means; any other path as it is.

    It is that of refs/main, or else the only one. Raises `CheckpointError` for a repository
    without one, or with several and no refs/main, and for the cache itself, with what it holds.
    """
    repository = path.parent if path.name == _SNAPSHOTS else path
    if _repository_name(repository.name) and not (repository / "model_index.json").exists():
        return _current_snapshot(repository) if repository.is_dir() else path
    models = [folder for base in (path, path / "hub") for folder in _repositories(base)]
    if models and not (path / "model_index.json").exists():
        names = ", ".join(_repository_name(folder.name) for folder in models)
        raise CheckpointError(
            f"is a cache of the model hub and no model; it holds {names}",
            remedy=f"Name one of its folders, as {models[0]}",
        )
    return path


def repository_of(path: Path) -> str:
    """Return the OWNER/NAME of the repository in whose cache a path lies, "" outside of any."""
    for candidate in (path.absolute(), path.resolve()):
        for folder in (candidate, *candidate.parents):
            if folder.parent.name == _SNAPSHOTS:
                return _repository_name(folder.parent.parent.name)
    return ""


def is_in_cache(path: Path) -> bool:
    """Return whether a path is in a repository's folder in the cache, or is that folder."""
    return any(_repository_name(part) for part in path.absolute().parts)


def _current_snapshot(repository: Path) -> Path:
    snapshots = repository / _SNAPSHOTS
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    if commit and (snapshots / commit).is_dir():
        return snapshots / commit
    present = sorted(folder for folder in snapshots.glob("*") if folder.is_dir())
    name = _repository_name(repository.name)
    if len(present) == 1:
        return present[0]
    if not present:
        raise CheckpointError(
            f"holds no snapshot of {name}: its download did not end",
            remedy=f"Get it with: aura download {name}",
        )
    raise CheckpointError(
        f"holds {len(present)} snapshots of {name}, and refs/main names none of them",
        remedy=f"Name one, as {present[0]}",
    )


def _repositories(folder: Path) -> list[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError:
        return []
    return [child for child in children if _repository_name(child.name) and child.is_dir()]


def _repository_name(folder_name: str) -> str:
    """Return OWNER/NAME for models--OWNER--NAME, and "" for any other name."""
    if not folder_name.startswith(_PREFIX):
        return ""
    return folder_name.removeprefix(_PREFIX).replace(_SEPARATOR, "/", 1)
