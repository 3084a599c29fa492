"""The names of checkpoints on the model hub: OWNER/NAME."""

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.checkpoint import REPOSITORY, Checkpoint

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
