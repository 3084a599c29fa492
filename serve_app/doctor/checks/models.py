"""Check the models' folders and files: complete, of one family, their licences accepted.

No torch. The hub is not contacted: a download is judged by the files it left behind.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.config.catalog import (
    CatalogExtension,
    CatalogModel,
    ModelCatalog,
    listed_extensions,
    listed_models,
)
from serve_app.config.checkpoints import (
    DOWNLOAD_COMMAND,
    DOWNLOADS,
    ENV_VAR,
    check_pair,
    check_safety_checker,
    inspect,
    repository_id,
    safety_checker_download,
    similar_checkpoint,
)
from serve_app.config.setting_sources import ENV_FILES
from serve_app.config.settings import Settings
from serve_app.core.diffusion.extensions import kind_label
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import (
    AuraError,
    CheckpointError,
    ConfigsError,
    OperatorError,
    SchedulerNotSupported,
    SettingsError,
)
from serve_app.doctor.checks.gpu_probe import gib
from serve_app.doctor.finding import Finding, Verdict, edit_command, fail, fine, problem_of, warn
from serve_app.hub.client import is_logged_in
from serve_app.hub.env_file import path_value
from serve_app.hub.local_files import unfinished_bytes
from serve_app.hub.selection import HUB_REPOS
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import (
    INDEX_FILE,
    REPOSITORY,
    SCHEDULER_FILE,
    Checkpoint,
    num_parameters,
)
from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS, ExtensionKindEntries
from serve_app.runtime.checkpoints.hub_cache import is_in_cache
from serve_app.runtime.checkpoints.licenses import license_of, license_of_extension
from serve_app.runtime.checkpoints.repositories import folder_repository

_DOWNLOAD = "aura download"


@dataclass(frozen=True, slots=True)
class FoundModels:
    """The checkpoints that can be loaded."""

    base: Checkpoint | None
    refiner: Checkpoint | None
    is_demo: bool  # whether base and refiner are the bundled ones
    listed: tuple[CatalogModel, ...] = ()  # in MODELS_FILE
    extensions: tuple[CatalogExtension, ...] = ()  # in MODELS_FILE too

    @property
    def catalog(self) -> ModelCatalog:
        """The catalog as the service would have it."""
        base = [CatalogModel(self.base, can_be_refined=True)] if self.base else []
        return ModelCatalog((*base, *self.listed), self.refiner, self.extensions)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All checkpoints, the refiner last."""
        refiner = [self.refiner] if self.refiner else []
        return *(model.checkpoint for model in self.catalog.models), *refiner


def find_models(settings: Settings) -> tuple[FoundModels, list[Finding]]:
    """Find the base and the refiner, and check that they are complete and fit together."""
    if settings.model_checkpoint_dir is None:
        return _find_demo(settings)
    base, base_finding = _find_checkpoint(
        settings.model_checkpoint_dir, Stage.BASE, settings.model_config_dir
    )
    folder = settings.model_refiner_checkpoint_dir
    if folder is None:
        no_refiner = fine("refiner", "none: the base runs all steps")
        return FoundModels(base, None, is_demo=False), [base_finding, no_refiner]
    refiner, refiner_finding = _find_checkpoint(folder, Stage.REFINER)
    if base and refiner:
        try:
            check_pair(base, refiner)
        except CheckpointError as error:
            refiner_finding = fail("refiner", problem_of(error), f"{ENV_VAR[Stage.REFINER]}=")
    return FoundModels(base, refiner, is_demo=False), [base_finding, refiner_finding]


def find_listed_models(
    settings: Settings, found: FoundModels, kinds: ExtensionKindEntries = EXTENSION_KINDS
) -> tuple[FoundModels, Finding]:
    """Add the models and extensions of MODELS_FILE; the finding names the first problem with it."""
    file = settings.models_file
    if file is None:
        return found, fine("models file", "none: all requests use the same model")
    try:
        found = replace(found, listed=listed_models(settings, found.base, found.refiner, kinds))
        found = replace(found, extensions=listed_extensions(settings, found.catalog.models, kinds))
    except ConfigsError as error:
        fix = _config_folder_fix(DOWNLOAD_COMMAND[Stage.BASE])
        return found, fail("models file", problem_of(error), fix)
    except OperatorError as error:
        fix = edit_command(file) if file.exists() else "MODELS_FILE="
        return found, fail("models file", problem_of(error), fix)
    names = [model.checkpoint.name for model in found.listed]
    names += [f"the {extension.info.key}" for extension in found.extensions]
    return found, fine("models file", f"{file} adds {', '.join(names) or 'nothing'}")


def check_licenses(settings: Settings, models: FoundModels) -> Finding:
    """Check that the terms of the weights were accepted, and the acceptance is beside them.

    A single file has no such record, and needs none if the operator stated its licence.
    """
    stated = {model.checkpoint.name: model.license for model in models.listed}
    accepted: list[str] = []
    terms = ["the demo's weights are part of this project: Apache 2.0"] * models.is_demo
    for checkpoint in models.checkpoints:
        name = checkpoint.name
        license = license_of(checkpoint, stated.get(name)).name
        if checkpoint.folder == demo_folder(checkpoint.stage) and not checkpoint.file:
            continue
        if checkpoint.file or stated.get(name):
            terms.append(f"{name} is under {license}")
        elif acceptance.read(checkpoint.folder) is not None:
            accepted.append(name)
        else:
            problem = (
                f"{name} is under {license}, and its folder has no record that somebody accepted "
                f"that ({acceptance.FILE}): read the licence"
            )
            if settings.models_file and name in stated:
                return warn(
                    "licence",
                    f"{problem}, then state it as `license` of the model",
                    edit_command(settings.models_file),
                )
            return warn(
                "licence",
                f"{problem}, then accept it",
                download_command(checkpoint.folder, checkpoint.stage),
            )
    for extension in models.extensions:
        key, stated_license = extension.info.key, extension.license
        if not (stated_license or extension.file.license) and settings.models_file:
            return warn(
                "licence",
                f"the licence of the {key} is unknown: look it up where the file came from, "
                f"then state it as `license` of the {kind_label(key.kind)}",
                edit_command(settings.models_file),
            )
        terms_of_file = license_of_extension(key.name, extension.file, stated_license)
        terms.append(f"{key.name} is under {terms_of_file.name}")
    if accepted:
        terms.append(f"accepted for {' and '.join(accepted)}")
    return fine("licence", "; ".join(terms))


def check_downloads(settings: Settings, models: FoundModels) -> Finding:
    """Check that no download was interrupted."""
    complete = {checkpoint.folder for checkpoint in models.checkpoints}
    folders = {
        settings.model_checkpoint_dir: Stage.BASE,
        settings.model_refiner_checkpoint_dir: Stage.REFINER,
    } | {(DOWNLOADS / repo.folder).absolute(): _stage_of(repo.name) for repo in HUB_REPOS.values()}
    for folder, stage in folders.items():
        if folder is None or folder in complete or not (size := unfinished_bytes(folder)):
            continue
        return warn(
            "download",
            f"{folder} holds {gib(size)} of an interrupted download",
            download_command(folder, stage),
        )
    return fine("download", "none was interrupted")


def check_token(findings: list[Finding], download: Finding) -> Finding:
    """Check that there is a token for gated repositories, if anything is still to download."""
    if is_logged_in():
        return fine("hub", "a Hugging Face token is stored on this machine")
    is_missing = any(finding.verdict is Verdict.FAIL for finding in findings)
    if not is_missing and download.verdict is Verdict.OK:
        return fine("hub", "no Hugging Face token is stored, and none is needed")
    return warn(
        "hub",
        "no Hugging Face token is stored: a gated repository answers 403 until you accept its "
        "terms on its page and log in",
        "hf auth login",
    )


def check_filters(settings: Settings) -> Finding:
    """Check that the safety filters that are switched on can be used."""
    checker = settings.safety_checker_dir
    try:
        words = settings.blocked_words()
        if checker:
            check_safety_checker(checker)
    except CheckpointError as error:
        fix = safety_checker_download(checker) if checker else "SAFETY_CHECKER_DIR="
        return fail("filters", problem_of(error), fix)
    except AuraError as error:
        return fail("filters", problem_of(error), "SAFETY_WORDS_FILE=")
    filters = [f"{len(words)} words"] * bool(words) + ["images"] * bool(checker)
    return fine("filters", f"on: {', '.join(filters)}" if filters else "off")


def _find_demo(settings: Settings) -> tuple[FoundModels, list[Finding]]:
    base, refiner = (inspect(demo_folder(stage), stage) for stage in Stage)
    models = FoundModels(base, refiner, is_demo=True)
    if settings.model_refiner_checkpoint_dir:
        message = (
            f"{ENV_VAR[Stage.REFINER]}={settings.model_refiner_checkpoint_dir} is set without "
            f"{ENV_VAR[Stage.BASE]}"
        )
        fix = _local_checkpoint_fix(Stage.BASE) or DOWNLOAD_COMMAND[Stage.BASE]
        return models, [fail("base", message, fix)]
    message = f"{ENV_VAR[Stage.BASE]} is not set, so the demo model draws plain shapes"
    if fix := _local_checkpoint_fix(Stage.BASE):
        return models, [warn("base", f"{message}, but a complete SDXL is on this disk", fix)]
    files = [name for name in ENV_FILES if Path(name).is_file()]
    if files:
        return models, [
            warn("base", f"{message}, in spite of the settings in {files[-1]}", _DOWNLOAD)
        ]
    return models, [fine("base", f"{message}; for real images: {_DOWNLOAD}")]


def _find_checkpoint(
    path: Path, stage: Stage, configs: Path | None = None
) -> tuple[Checkpoint | None, Finding]:
    try:
        checkpoint = inspect(path, stage, configs=configs)
    except CheckpointError as error:
        fix = "" if path.exists() else _local_checkpoint_fix(stage)
        if similar := similar_checkpoint(path):
            fix = _path_fix(ENV_VAR[stage], similar)
        elif name := repository_id(path):
            fix = f"{_DOWNLOAD} {name}"
        elif isinstance(error, SchedulerNotSupported):
            fix = edit_command(path / SCHEDULER_FILE)
        fix = fix or download_command(path, stage)
        if isinstance(error, ConfigsError) and stage is Stage.BASE:
            fix = _config_folder_fix(fix)
        return None, fail(stage.value, problem_of(error), fix)
    billions = sum(num_parameters(checkpoint).values()) / 1e9
    size = checkpoint.native_size
    message = f"{path} is complete: {billions:.2f} billion parameters, {size} x {size} pixels"
    return checkpoint, fine(stage.value, message)


def _path_fix(variable: str, path: Path) -> str:
    """Return the line that points a variable at a path, "" if it can't be written as one."""
    try:
        is_below = path.is_relative_to(Path.cwd())
        return f"{variable}={path_value(path.relative_to(Path.cwd()) if is_below else path)}"
    except SettingsError:
        return ""


def _config_folder_fix(download: str) -> str:
    """Return the line that names a folder with configs for single files, or its download."""
    return _local_checkpoint_fix(Stage.BASE, "MODEL_CONFIG_DIR") or download


def download_command(folder: Path, stage: Stage) -> str:
    """Return the command that completes a folder, and asks for its licence.

    Where nothing tells which repository the folder is of, a person must fill in the name.
    """
    name = folder_repository(folder, stage)
    if name is None:
        is_model = (folder / INDEX_FILE).exists()
        return f"{_DOWNLOAD} OWNER/NAME" if is_model else DOWNLOAD_COMMAND[stage]
    word = next((word for word, repo in HUB_REPOS.items() if repo.name == name), name)
    if folder.parent == DOWNLOADS.absolute() or is_in_cache(folder):
        return f"{_DOWNLOAD} {word}"
    return f"{_DOWNLOAD} {word} --folder {shlex.quote(str(folder.parent))}"


def _local_checkpoint_fix(stage: Stage, variable: str | None = None) -> str:
    """Return the line that points a variable at a downloaded checkpoint, "" without one.

    By default the variable is that of the stage.
    """
    for repo in HUB_REPOS.values():
        if _stage_of(repo.name) is stage:
            try:
                inspect(DOWNLOADS / repo.folder, stage)
            except CheckpointError:
                continue
            return f"{variable or ENV_VAR[stage]}={path_value(DOWNLOADS / repo.folder)}"
    return ""


def _stage_of(repository: str) -> Stage:
    return next(stage for stage, name in REPOSITORY.items() if name == repository)
