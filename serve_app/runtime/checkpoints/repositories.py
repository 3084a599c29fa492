"""The names of checkpoints on the model hub: OWNER/NAME."""

from pathlib import Path

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.checkpoint import REPOSITORY, Checkpoint
from serve_app.runtime.checkpoints.hub_cache import repository_of, snapshot_folder

REPOSITORY_FOLDER = {Stage.BASE: "sdxl-base", Stage.REFINER: "sdxl-refiner"}  # of REPOSITORY


def repository_name(checkpoint: Checkpoint) -> str | None:
    """Return the repository that a checkpoint was downloaded from, as far as its folder tells.

    The hub's cache and our own download say so; other ways of downloading are known by the folder's
    name.
    """
    if checkpoint.repository:
        return checkpoint.repository
    is_usual = checkpoint.folder.name == REPOSITORY_FOLDER[checkpoint.stage]
    return REPOSITORY[checkpoint.stage] if is_usual and checkpoint.file is None else None


def folder_repository(folder: Path, stage: Stage) -> str | None:
    """Return the repository that a folder, which need not be whole, was downloaded from."""
    if record := acceptance.read(folder):
        return record.repository
    try:
        cached = repository_of(snapshot_folder(folder))
    except CheckpointError:
        cached = ""
    is_usual = folder.name == REPOSITORY_FOLDER[stage]
    return cached or (REPOSITORY[stage] if is_usual else None)
