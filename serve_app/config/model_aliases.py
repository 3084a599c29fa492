"""What else a request may call a checkpoint: its path as the operator wrote it, or its hub name."""

from pathlib import Path

from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.repositories import repository_name


def aliases_of(path: Path, checkpoint: Checkpoint, *folders: Path) -> tuple[str, ...]:
    """Return the other names of the checkpoint at a configured path, which is absolute.

    They are the path, also as seen from the current folder, from the user's home or from one of
    `folders`; where it leads to; the last part of each; and the name of its repository. Requests
    are compared with these texts, so no path of theirs is ever opened.
    """
    paths = dict.fromkeys((path, path.resolve()))
    names = dict.fromkeys(map(str, paths))
    for folder in (Path.cwd(), *folders):
        names |= dict.fromkeys(_below(path, folder))
    names |= dict.fromkeys(f"~/{name}" for name in _below(path, Path.home()))
    names |= dict.fromkeys(each.name for each in paths)
    repository = repository_name(checkpoint)
    if repository is not None:
        names[repository] = None
    return tuple(name for name in names if name != checkpoint.name)


def _below(path: Path, folder: Path) -> list[str]:
    """Return the path as seen from a folder that it lies in."""
    return [str(path.relative_to(folder))] if path != folder and path.is_relative_to(folder) else []
