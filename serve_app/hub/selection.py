"""What is in a repository of weights, and which of its files a stage needs.

Pure: knows no network and no disk, so every choice can be tried on a list of names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.core.diffusion.numeric_profile import default_precision
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, DownloadError
from serve_app.runtime.checkpoints.checkpoint import NETWORKS, REPOSITORY, components, is_fp16

INDEX = "model_index.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_AT_ROOT = re.compile(r"model_index\.json|README\.md|LICENSE(\.md|\.txt)?")
_IN_COMPONENT = re.compile(r"(\w+)/([\w-][\w.-]*)")
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.safetensors"
)
_SHARDS = ".safetensors.index."  # the list of the files that weights are cut into
_STAGES = {
    "StableDiffusionXLPipeline": Stage.BASE,
    "StableDiffusionXLImg2ImgPipeline": Stage.REFINER,
}


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository that can be asked for, and what its folder is called here."""

    name: str  # OWNER/NAME
    folder: str


@dataclass(frozen=True, slots=True)
class RepoRequest:
    """One repository as it was asked for: of which hub, in which revision, by which command."""

    name: str
    revision: str
    address: str  # of the hub
    again: str  # the command that asked, and that goes on after a trouble

    @property
    def page(self) -> str:
        """Where a person reads of the repository and accepts its terms."""
        return f"{self.address}/{self.name}"


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository, as the hub describes it."""

    path: str
    size: int | None  # bytes
    sha256: str | None  # of a large (LFS) file
    blob: str | None  # git's own sha1 of any other

    @property
    def hash(self) -> str:
        """What the content is verified by, "" when the hub does not say."""
        return self.sha256 or self.blob or ""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit."""

    asked: RepoRequest
    commit: str
    license: str  # as its card names it, "" when it does not
    license_url: str
    entries: tuple[RepoFile, ...]


HUB_REPOS = {
    "sdxl": HubRepo(REPOSITORY[Stage.BASE], "sdxl-base"),
    "sdxl-refiner": HubRepo(REPOSITORY[Stage.REFINER], "sdxl-refiner"),
}


def repos_for(wish: str) -> tuple[HubRepo, ...]:
    """The repositories that a word on the command line means. Raises `DownloadError`."""
    if wish == "all":
        return tuple(HUB_REPOS.values())
    for word, source in HUB_REPOS.items():
        if wish in (word, source.name):
            return (source,)
    if not _NAME.fullmatch(wish):
        raise DownloadError(
            f"{wish} can't be downloaded: it must be sdxl, sdxl-refiner, all, or the OWNER/NAME "
            "of a repository"
        )
    return (HubRepo(wish, wish.partition("/")[2]),)


def stage_of(index: Mapping[str, Any], asked: RepoRequest) -> Stage:
    """The stage that a model_index.json is of, by its class. Raises `DownloadError`."""
    kind = index.get("_class_name")
    stage = _STAGES.get(kind) if isinstance(kind, str) else None
    if stage is None:
        raise DownloadError(
            f"{asked.name} is no SDXL base or refiner: its {INDEX} says {kind}, and must say "
            f"{' or '.join(_STAGES)}. Choose another repository, or: "
            "aura download sdxl"
        )
    return stage


def half_wanted(precision: str | None, device: str) -> bool:
    """Whether the fp16 files serve best: half the bytes, unless the service computes in fp32."""
    return (precision or default_precision(device)) != "fp32"


def select_files(
    repository: Repository, index: Mapping[str, Any], stage: Stage, *, half: bool
) -> tuple[RepoFile, ...]:
    """The files of a whole stage, the smallest first: one variant of each network's weights.

    Where a network has but one variant, it is that one. Raises `DownloadError` when the
    repository lacks something, has it as a pickle only, or the hub gives no size or hash.
    """
    try:
        parts = components(index, stage)
    except CheckpointError as error:
        raise DownloadError(
            f"{repository.asked.name} {error}, so it can't be the {stage}. Choose another"
        ) from None
    chosen = [entry for entry in repository.entries if _AT_ROOT.fullmatch(entry.path)]
    folders: dict[str, dict[str, RepoFile]] = {part: {} for part in parts}
    for entry in repository.entries:
        if (found := _IN_COMPONENT.fullmatch(entry.path)) and found[1] in parts:
            folders[found[1]][found[2]] = entry
    for part, files in sorted(folders.items()):
        names = _of_component(files, half=half)
        if part in NETWORKS and not any(_WEIGHTS.fullmatch(name) for name in names):
            raise DownloadError(
                f"{repository.asked.name} has no weights of {part} as safetensors, and nothing "
                "else is loaded here: pickles can run code. Choose another repository"
            )
        chosen += [files[name] for name in names]
    for entry in chosen:
        if entry.size is None or not entry.hash:
            raise DownloadError(
                f"{repository.asked.address} says neither size nor hash of {entry.path}, so it "
                "can't be verified. Unset HF_ENDPOINT, or name a whole mirror in it"
            )
    return tuple(sorted(chosen, key=lambda entry: (entry.size, entry.path)))


def size_of(entries: Iterable[RepoFile]) -> int:
    """How many bytes the files have together."""
    return sum(entry.size or 0 for entry in entries)


def _of_component(files: Iterable[str], *, half: bool) -> list[str]:
    weights = [name for name in files if _WEIGHTS.fullmatch(name)]
    halves = [name for name in weights if is_fp16(name)]
    plain = [name for name in weights if not is_fp16(name)]
    half = bool(halves) and (half or not plain)
    texts = [
        name
        for name in files
        if name.endswith((".json", ".txt")) and (_SHARDS not in name or is_fp16(name) == half)
    ]
    return [*(halves if half else plain), *texts]
