"""Which repositories a word means, and which files of a repository a stage needs.

Pure: no network, no disk, so every choice can be tested on a list of names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.core.diffusion.numeric_profile import default_precision
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, DownloadError
from serve_app.runtime.checkpoints.checkpoint import NETWORKS, REPOSITORY, components
from serve_app.runtime.checkpoints.network_folder import is_fp16
from serve_app.runtime.checkpoints.repositories import REPOSITORY_FOLDER

INDEX = "model_index.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_AT_ROOT = re.compile(r"model_index\.json|README\.md|LICENSE(\.md|\.txt)?")
_IN_COMPONENT = re.compile(r"(\w+)/([\w-][\w.-]*)")
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.safetensors"
)
_SHARD_INDEX = ".safetensors.index."  # in the name of the list of shards
_STAGES = {
    "StableDiffusionXLPipeline": Stage.BASE,
    "StableDiffusionXLImg2ImgPipeline": Stage.REFINER,
}


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository, and the folder that it is downloaded to."""

    name: str  # OWNER/NAME
    folder: str


@dataclass(frozen=True, slots=True)
class RepoRequest:
    """A repository at a revision on a hub, and the command line that asked for it."""

    name: str
    revision: str
    endpoint: str  # of the hub
    command: str  # to run again after a problem; it resumes

    @property
    def page(self) -> str:
        """The web page that describes the repository and shows its terms."""
        return f"{self.endpoint}/{self.name}"


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository, as the hub describes it."""

    path: str
    size: int | None  # bytes
    sha256: str | None  # of a large (LFS) file
    git_sha1: str | None  # of any other file: its blob id

    @property
    def hash(self) -> str:
        """The hash that the content is verified by, "" if the hub does not state it."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit."""

    request: RepoRequest
    commit: str
    license: str  # as its card names it, "" if it does not
    license_url: str
    files: tuple[RepoFile, ...]


HUB_REPOS = {
    "sdxl": HubRepo(REPOSITORY[Stage.BASE], REPOSITORY_FOLDER[Stage.BASE]),
    "sdxl-refiner": HubRepo(REPOSITORY[Stage.REFINER], REPOSITORY_FOLDER[Stage.REFINER]),
}


def repos_for(word: str) -> tuple[HubRepo, ...]:
    """Return the repositories that an argument of `aura download` means.

    Raises `DownloadError`.
    """
    if word == "all":
        return tuple(HUB_REPOS.values())
    for alias, repo in HUB_REPOS.items():
        if word in (alias, repo.name):
            return (repo,)
    if not _NAME.fullmatch(word):
        raise DownloadError(
            f"{word} can't be downloaded: it must be sdxl, sdxl-refiner, all, or the OWNER/NAME "
            "of a repository"
        )
    return (HubRepo(word, word.partition("/")[2]),)


def stage_of(index: Mapping[str, Any], request: RepoRequest) -> Stage:
    """Return the stage that a model_index.json is for, by its pipeline class.

    Raises `DownloadError`.
    """
    pipeline = index.get("_class_name")
    stage = _STAGES.get(pipeline) if isinstance(pipeline, str) else None
    if stage is None:
        raise DownloadError(
            f"is neither an SDXL base nor a refiner: the class in its {INDEX} is {pipeline}, and "
            f"must be {' or '.join(_STAGES)}",
            subject=request.name,
            remedy="Choose another repository, or run: aura download sdxl",
        )
    return stage


def prefers_half(precision: str | None, device: str) -> bool:
    """Return whether to download fp16 files: half the bytes, unless the service runs in fp32."""
    return (precision or default_precision(device)) != "fp32"


def select_files(
    repository: Repository, index: Mapping[str, Any], stage: Stage, *, half: bool
) -> tuple[RepoFile, ...]:
    """Return the files of a whole stage, smallest first, with one variant of each network.

    A network that has only one variant comes in that one, whatever `half` says. Raises
    `DownloadError` if the repository lacks a component, has weights only as a pickle, or the hub
    states no size or hash.
    """
    request = repository.request
    try:
        parts = components(index, stage)
    except CheckpointError as error:
        raise DownloadError(
            f"{error.problem}, so it can't be the {stage}",
            subject=request.name,
            remedy="Choose another repository",
        ) from None
    chosen = [file for file in repository.files if _AT_ROOT.fullmatch(file.path)]
    folders: dict[str, dict[str, RepoFile]] = {part: {} for part in parts}
    for file in repository.files:
        if (match := _IN_COMPONENT.fullmatch(file.path)) and match[1] in parts:
            folders[match[1]][match[2]] = file
    for part, files in sorted(folders.items()):
        names = _select_names(files, half=half)
        if part in NETWORKS and not any(_WEIGHTS.fullmatch(name) for name in names):
            raise DownloadError(
                f"has no safetensors weights for {part}, and only safetensors are loaded: a pickle "
                "can run code",
                subject=request.name,
                remedy="Choose another repository",
            )
        chosen += [files[name] for name in names]
    for file in chosen:
        if file.size is None or not file.hash:
            raise DownloadError(
                f"states no size or hash for {file.path}, so it can't be verified",
                subject=request.endpoint,
                remedy="Unset HF_ENDPOINT, or set it to a complete mirror",
            )
    return tuple(sorted(chosen, key=lambda file: (file.size, file.path)))


def total_size(files: Iterable[RepoFile]) -> int:
    """Return the size of all files together, in bytes."""
    return sum(file.size or 0 for file in files)


def _select_names(names: Iterable[str], *, half: bool) -> list[str]:
    """Return the weights of one variant, and the configs and lists that belong to it."""
    names = list(names)
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    half_weights = [name for name in weights if is_fp16(name)]
    full_weights = [name for name in weights if not is_fp16(name)]
    half = bool(half_weights) and (half or not full_weights)
    texts = [
        name
        for name in names
        if name.endswith((".json", ".txt")) and (_SHARD_INDEX not in name or is_fp16(name) == half)
    ]
    return [*(half_weights if half else full_weights), *texts]
