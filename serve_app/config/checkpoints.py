"""Checkpoints that settings name: an error here names the setting and the command that fixes it.

The readers in `runtime.checkpoints` know only files. No torch, no Ray.
"""

from collections.abc import Callable
from pathlib import Path

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, ConfigsError, SchedulerNotSupported
from serve_app.core.suggest import suggest
from serve_app.runtime.checkpoints import checkpoint as files
from serve_app.runtime.checkpoints.checkpoint import (
    INDEX_FILE,
    REPOSITORY,
    SCHEDULER_FILE,
    Checkpoint,
    is_pair,
    is_single_file,
)
from serve_app.runtime.checkpoints.repositories import folder_repository

ENV_VAR = {
    Stage.BASE: "MODEL_CHECKPOINT_DIR",
    Stage.REFINER: "MODEL_REFINER_CHECKPOINT_DIR",
}
DOWNLOAD_COMMAND = {
    Stage.BASE: "aura download sdxl",
    Stage.REFINER: "aura download sdxl-refiner",
}
DOWNLOADS = Path("models")  # where `aura download` puts them, in the working folder
DEMO_NOTICE = (
    "This is the demo checkpoint: it draws plain shapes, in images of 128 pixels a side. For "
    "photographs and paintings get Stable Diffusion XL with: aura download, or set "
    "MODEL_CHECKPOINT_DIR to a folder of it; then start again."
)


def inspect(
    path: Path, stage: Stage, *, configs: Path | None = None, setting: str | None = None
) -> Checkpoint:
    """Return what the checkpoint that a setting names says of itself.

    `setting` is by default the environment variable of the stage. Raises `CheckpointError` with
    the setting and its value as subject and, where one is known, a command as remedy.
    """
    try:
        return files.inspect(path, stage, configs=configs)
    except CheckpointError as error:
        subject = f"{setting or ENV_VAR[stage]}={path}"
        raise error.about(subject, remedy=_remedy(error, path, stage, configs)) from None


def _remedy(error: CheckpointError, path: Path, stage: Stage, configs: Path | None) -> str:
    if error.remedy:
        return error.remedy
    command = DOWNLOAD_COMMAND[stage]
    if similar := similar_checkpoint(path):
        return f"Did you mean {similar}?"
    if name := repository_id(path):
        return f"Where {name} is a repository of the model hub, get it with: aura download {name}"
    if isinstance(error, SchedulerNotSupported):
        return f"Choose another checkpoint, or change {path / SCHEDULER_FILE}"
    if isinstance(error, ConfigsError):
        if configs is not None:
            return f"Get a whole folder with: {command}"
        if stage is Stage.BASE:
            return f"Get a folder that has them, and name it in MODEL_CONFIG_DIR: {command}"
        return f"Get a folder that has them, and name that instead: {command}"
    if is_single_file(path):
        return ""
    origin = folder_repository(path, stage)
    if origin is None and (path / INDEX_FILE).exists():
        return "Download that model again, or choose another"
    if origin not in (None, REPOSITORY[stage]):
        command = f"aura download {origin}"
    return f"Get it whole with: {command}"


def repository_id(path: Path) -> str | None:
    """Return the OWNER/NAME of a repository that a missing path was probably meant as."""
    owner = path.parent
    is_id = not is_single_file(path) and not owner.exists() and owner.parent.is_dir()
    return "/".join(path.parts[-2:]) if is_id and owner.name != DOWNLOADS.name else None


def similar_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint that a missing path is probably a misspelling of."""
    return None if path.exists() else _similar(path, _is_checkpoint)


def _similar(path: Path, is_wanted: Callable[[Path], bool]) -> Path | None:
    """Return an existing path that differs a little in the names of its last folders."""
    folder = path.parent if path.parent.exists() else _similar(path.parent, Path.is_dir)
    try:
        names = [entry.name for entry in folder.iterdir() if is_wanted(entry)] if folder else []
    except OSError:
        return None
    name = suggest(path.name, names)
    return folder / name if folder and name else None


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() if is_single_file(path) else (path / INDEX_FILE).is_file()


def check_pair(base: Checkpoint, refiner: Checkpoint) -> None:
    """Raise `CheckpointError` when the refiner can't continue what the base model began."""
    if not is_pair(base, refiner):
        raise CheckpointError(
            f"can't continue images of {ENV_VAR[Stage.BASE]}={base.path}: they differ in noise "
            "schedule or native size",
            subject=f"{ENV_VAR[Stage.REFINER]}={refiner.path}",
            remedy=f"Unset {ENV_VAR[Stage.REFINER]}, or choose the refiner made for this base",
        )


def check_safety_checker(folder: Path) -> None:
    """Raise `CheckpointError` when SAFETY_CHECKER_DIR holds no whole safety checker."""
    try:
        files.check_safety_checker(folder)
    except CheckpointError as error:
        remedy = f"Get it with: {safety_checker_download(folder)}"
        raise error.about(f"SAFETY_CHECKER_DIR={folder}", remedy=remedy) from None


def safety_checker_download(folder: Path) -> str:
    """Return the command that downloads the safety checker of stock diffusers into a folder."""
    return f"hf download CompVis/stable-diffusion-safety-checker --local-dir {folder}"
