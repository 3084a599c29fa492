"""The names of checkpoints on the model hub: OWNER/NAME."""

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.checkpoint import REPOSITORY, Checkpoint

REPOSITORY_FOLDER = {Stage.BASE: "sdxl-base", Stage.REFINER: "sdxl-refiner"}  # of REPOSITORY


def repository_name(checkpoint: Checkpoint) -> str | None:
    """Return the repository that a checkpoint was downloaded from, as far as its folder tells.

    Our own download leaves a record; other ways of downloading are known by the folder's name.
    """
    if checkpoint.file is not None:
        return None
    record = acceptance.read(checkpoint.folder)
    if record is not None:
        return record.repository
    is_usual = checkpoint.folder.name == REPOSITORY_FOLDER[checkpoint.stage]
    return REPOSITORY[checkpoint.stage] if is_usual else None
