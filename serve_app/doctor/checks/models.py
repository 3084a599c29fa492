"""The models' folders and files: whole, of one family, fetched to the end, their licence accepted.

Knows no torch and asks no hub: what can be told of a download is told by what it left behind.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.config.catalog import (
    CatalogLora,
    CatalogModel,
    ModelCatalog,
    find_loras,
    listed_models,
)
from serve_app.config.checkpoints import (
    DOWNLOAD_COMMAND,
    ENV_VAR,
    check_pair,
    check_safety_checker,
    safety_checker_download,
)
from serve_app.config.settings import ENV_FILES, Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import AuraError, CheckpointError, ConfigsError, OperatorError
from serve_app.doctor.checks.gpu_probe import gib
from serve_app.doctor.finding import Finding, Verdict, editing, fail, fine, warn
from serve_app.hub import acceptance
from serve_app.hub.env_file import as_value
from serve_app.hub.local_files import unfinished
from serve_app.hub.selection import HUB_REPOS
from serve_app.hub.token import is_logged_in
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import (
    REPOSITORY,
    Checkpoint,
    inspect,
    num_parameters,
)
from serve_app.runtime.checkpoints.licenses import license_of, license_of_lora

_POINTER = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html", b"<?xml")
_MODELS = Path("models")  # where `download` puts them, in the working folder
_DOWNLOAD = "aura download"


@dataclass(frozen=True, slots=True)
class Models:
    """The checkpoints that can be loaded, and whether base and refiner are the demo's."""

    base: Checkpoint | None
    refiner: Checkpoint | None
    demo: bool
    listed: tuple[CatalogModel, ...] = ()  # in MODELS_FILE
    loras: tuple[CatalogLora, ...] = ()  # there too

    @property
    def catalog(self) -> ModelCatalog:
        """Those there are, as the service would have them."""
        base = [CatalogModel(self.base, can_be_refined=True)] if self.base else []
        return ModelCatalog((*base, *self.listed), self.refiner, self.loras)

    @property
    def whole(self) -> tuple[Checkpoint, ...]:
        """All of them, the refiner last."""
        lineup = self.catalog
        refiner = [lineup.refiner] if lineup.refiner else []
        return *(model.checkpoint for model in lineup.models), *refiner


def find(settings: Settings) -> tuple[Models, list[Finding]]:
    """Base and refiner, and what is wrong with them."""
    if settings.model_checkpoint_dir is None:
        return _find_demo(settings)
    base, of_base = _look(settings.model_checkpoint_dir, Stage.BASE, settings.model_config_dir)
    folder = settings.model_refiner_checkpoint_dir
    if folder is None:
        alone = fine("refiner", "none: the base makes the whole picture")
        return Models(base, None, demo=False), [of_base, alone]
    refiner, of_refiner = _look(folder, Stage.REFINER)
    if base and refiner:
        try:
            check_pair(base, refiner)
        except CheckpointError as error:
            of_refiner = fail("refiner", str(error), f"{ENV_VAR[Stage.REFINER]}=")
    return Models(base, refiner, demo=False), [of_base, of_refiner]


def find_listed(settings: Settings, found: Models) -> tuple[Models, Finding]:
    """The same with models and LoRAs of MODELS_FILE, and what is wrong with it, or one of them."""
    file = settings.models_file
    if file is None:
        return found, fine("models file", "none: there is one model for all requests")
    try:
        found = replace(found, listed=listed_models(settings, found.base, found.refiner))
        found = replace(found, loras=find_loras(settings, found.catalog.models))
    except ConfigsError as error:
        return found, fail("models file", _bare(error), _lending(DOWNLOAD_COMMAND[Stage.BASE]))
    except OperatorError as error:
        mend = editing(file) if file.exists() else "MODELS_FILE="
        return found, fail("models file", _bare(error), mend)
    names = [model.checkpoint.name for model in found.listed]
    names += [f"the LoRA {lora.info.name}" for lora in found.loras]
    return found, fine("models file", f"{file} adds {', '.join(names) or 'none'}")


def check_licenses(settings: Settings, models: Models) -> Finding:
    """Whether somebody accepted the terms of the weights, and that stands beside them.

    Nothing is recorded of single files, nor needed where the operator wrote the licence down.
    """
    said, accepted = {one.checkpoint.name: one.license for one in models.listed}, []
    told = ["the demo's weights are this project's own: Apache 2.0"] * models.demo
    for one in models.whole:
        terms = license_of(one, said.get(one.name)).name
        if one.folder == demo_folder(one.stage) and not one.file:
            continue
        if one.file or said.get(one.name):
            told.append(f"{one.name} is under {terms}")
        elif acceptance.recorded(one.folder) is not None:
            accepted.append(one.name)
        else:
            here = f"{one.name} is under {terms}, and no acceptance of it lies beside its weights"
            here += f" ({acceptance.FILE}): read it, "
            if settings.models_file and one.name in said:
                return warn(
                    "licence", f"{here}name it as its license", editing(settings.models_file)
                )
            return warn("licence", f"{here}accept it", fetching(one.folder, one.stage))
    for lora in models.loras:
        terms = license_of_lora(lora.info.name, lora.file, lora.license).name
        if not (lora.license or lora.file.license) and settings.models_file:
            here = f"the terms of the LoRA {lora.info.name} are not known: see where it came "
            here += "from, and name them as its license"
            return warn("licence", here, editing(settings.models_file))
        told.append(f"{lora.info.name} is under {terms}")
    if accepted:
        told.append(f"accepted for {' and '.join(accepted)}")
    return fine("licence", "; ".join(told))


def check_downloads(settings: Settings, models: Models) -> Finding:
    """Whether a download ended before it was whole."""
    whole = {one.folder for one in models.whole}
    folders = {
        settings.model_checkpoint_dir: Stage.BASE,
        settings.model_refiner_checkpoint_dir: Stage.REFINER,
    } | {(_MODELS / source.folder).absolute(): _stage(source.name) for source in HUB_REPOS.values()}
    for folder, stage in folders.items():
        if folder is None or folder in whole or not (came := unfinished(folder)):
            continue
        return warn(
            "download",
            f"{folder} holds {gib(came)} of a download that did not end",
            fetching(folder, stage),
        )
    return fine("download", "none is unfinished")


def check_token(found: list[Finding], download: Finding) -> Finding:
    """Whether a gated repository could be fetched, where something is still to be fetched."""
    if is_logged_in():
        return fine("hub", "a Hugging Face token is here")
    lacking = any(one.verdict is Verdict.FAIL for one in found)
    if not lacking and download.verdict is Verdict.OK:
        return fine("hub", "no Hugging Face token is here, and nothing here needs one")
    return warn(
        "hub",
        "no Hugging Face token is here: a gated repository answers 403 until its terms are "
        "accepted on its page and you are logged in",
        "hf auth login",
    )


def check_filters(settings: Settings) -> Finding:
    """Whether the safety filters that are on can be used."""
    try:
        words = settings.blocked_words()
        if settings.safety_checker_dir:
            check_safety_checker(settings.safety_checker_dir)
    except CheckpointError as error:
        folder = settings.safety_checker_dir
        return fail("filters", _bare(error), safety_checker_download(folder) if folder else "")
    except AuraError as error:
        return fail("filters", str(error), "SAFETY_WORDS_FILE=")
    on = [f"{len(words)} words"] * bool(words) + ["pictures"] * bool(settings.safety_checker_dir)
    return fine("filters", f"on: {', '.join(on)}" if on else "off")


def fetching(folder: Path, stage: Stage) -> str:
    """The command that makes the folder whole, and asks for the licence."""
    before = acceptance.recorded(folder)
    name = before.repository if before else REPOSITORY[stage]
    if not before and folder.name not in {source.folder for source in HUB_REPOS.values()}:
        return DOWNLOAD_COMMAND[stage]
    word = next((word for word, source in HUB_REPOS.items() if source.name == name), name)
    if folder.parent == _MODELS.absolute():
        return f"{_DOWNLOAD} {word}"
    return f"{_DOWNLOAD} {word} --folder {shlex.quote(str(folder.parent))}"


def _find_demo(settings: Settings) -> tuple[Models, list[Finding]]:
    base, refiner = (inspect(demo_folder(stage), stage) for stage in Stage)
    models = Models(base, refiner, demo=True)
    if settings.model_refiner_checkpoint_dir:
        said = (
            f"{ENV_VAR[Stage.REFINER]}={settings.model_refiner_checkpoint_dir} is set without "
            f"{ENV_VAR[Stage.BASE]}"
        )
        return models, [fail("base", said, _nearby(Stage.BASE) or DOWNLOAD_COMMAND[Stage.BASE])]
    said = f"{ENV_VAR[Stage.BASE]} is not set, so the demo draws plain shapes"
    if near := _nearby(Stage.BASE):
        return models, [warn("base", f"{said}, though a whole SDXL lies here", near)]
    files = [name for name in ENV_FILES if Path(name).is_file()]
    if files:
        return models, [warn("base", f"{said}, whatever else stands in {files[-1]}", _DOWNLOAD)]
    return models, [fine("base", f"{said}; for real pictures: {_DOWNLOAD}")]


def _look(
    path: Path, stage: Stage, configs: Path | None = None
) -> tuple[Checkpoint | None, Finding]:
    try:
        checkpoint = inspect(path, stage, configs=configs)
    except CheckpointError as error:
        mend = ("" if path.exists() else _nearby(stage)) or fetching(path, stage)
        if isinstance(error, ConfigsError) and stage is Stage.BASE:
            mend = _lending(mend)
        said = f"{ENV_VAR[stage]}={path} {error.problem}{_disguise(path)}"
        return None, fail(stage.value, said, mend)
    billions = sum(num_parameters(checkpoint).values()) / 1e9
    size = checkpoint.native_size
    said = f"{path} is whole: {billions:.2f} billion parameters, {size} pixels a side"
    return checkpoint, fine(stage.value, said)


def _bare(error: AuraError) -> str:
    """What is wrong, without the command that mends it, which a finding tells apart."""
    return f"{error.subject} {error.problem}".lstrip()


def _lending(fetch: str) -> str:
    """The line that names a folder with configs for single files, or what fetches one."""
    return _nearby(Stage.BASE, "MODEL_CONFIG_DIR") or fetch


def _disguise(path: Path) -> str:
    """What a weight file is in truth, where it is one of the usual others."""
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                begin = stream.read(64).lstrip().lower()
        except OSError:
            continue
        if begin.startswith(_POINTER):
            return ": it is a Git LFS pointer, since the clone fetched no weights"
        if begin.startswith(_PAGES):
            return ": it is a web page, as a site sends it with a 403 to who may not have the file"
    return ""


def _nearby(stage: Stage, variable: str = "") -> str:
    """The line that sets the folder where `download` puts a stage, when a whole one is there: as
    the stage's own variable, or as another."""
    for source in HUB_REPOS.values():
        if _stage(source.name) is stage:
            try:
                inspect(_MODELS / source.folder, stage)
            except CheckpointError:
                continue
            return f"{variable or ENV_VAR[stage]}={as_value(_MODELS / source.folder)}"
    return ""


def _stage(repository: str) -> Stage:
    return next(stage for stage, name in REPOSITORY.items() if name == repository)
