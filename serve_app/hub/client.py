"""What is asked of a hub, in huggingface_hub's own words: a repository's facts, and its files.

Knows no terminal, and decides nothing. `hf_hub_download` begins every file anew; its own `http_get`
goes on where a part ends, so files are fetched with that and put in place once verified.
"""

import json
import logging
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from serve_app import __version__
from serve_app.core.errors import DownloadError
from serve_app.hub.errors import hub_errors
from serve_app.hub.local_files import matches, part_of, size_there
from serve_app.hub.selection import INDEX, RepoFile, RepoRequest, Repository

_LIBRARY = "aura-serve"


def hub_address() -> str:
    """The hub that HF_ENDPOINT names, else Hugging Face's own.

    It is told of no more than the files asked for, unless HF_HUB_DISABLE_TELEMETRY=0 is set.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # `troubles` tells what is wrong
    return constants.ENDPOINT


def look_up(asked: RepoRequest) -> Repository:
    """The repository at the commit that the revision means now.

    Raises `DownloadError`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=asked.address, library_name=_LIBRARY, library_version=__version__)
    with hub_errors(asked):
        try:
            info = api.model_info(
                asked.name,
                revision=asked.revision,
                files_metadata=True,
                timeout=HF_HUB_DOWNLOAD_TIMEOUT,
            )
        except HFValidationError:
            raise
        except (ValueError, KeyError, TypeError):
            raise _no_hub(asked) from None
    if not info.sha:
        raise _no_hub(asked)
    card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}
    link = str(card.get("license_link") or "")
    return Repository(
        asked=asked,
        commit=info.sha,
        license=str(card.get("license_name") or card.get("license") or ""),
        license_url=link if link.startswith("http") else asked.page,
        entries=tuple(
            RepoFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in info.siblings or ()
        ),
    )


def read_index(repository: Repository) -> dict[str, Any]:
    """The model_index.json of a repository, without a trace on the disk. Raises `DownloadError`."""
    asked = repository.asked
    entry = next((entry for entry in repository.entries if entry.path == INDEX), None)
    if entry is None:
        raise DownloadError(
            f"{asked.name} is no diffusers repository: it has no {INDEX}. Choose one that has"
        )
    content = BytesIO()
    with hub_errors(asked):
        _get(repository, entry, content, 0, lambda _: None)
    try:
        index = json.loads(content.getvalue())
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise DownloadError(f"{asked.name} has an unreadable {INDEX}. Choose another repository")
    return index


def fetch(
    repository: Repository, entry: RepoFile, folder: Path, tell: Callable[[int], object]
) -> None:
    """The file lies in the folder, whole and verified; `tell` got each count of bytes that came.

    What came before a trouble stays, and the next call goes on from there. Raises `DownloadError`;
    when the content is not what the hub promised, nothing of it is kept.
    """
    part, target = part_of(folder, entry), folder / entry.path
    with hub_errors(repository.asked):
        part.parent.mkdir(parents=True, exist_ok=True)
        _fill(repository, entry, part, tell)
        with part.open("rb") as stream:
            sound = matches(entry, stream)
        if not sound:
            part.unlink()
            kind = "sha256" if entry.sha256 else "git hash"
            raise DownloadError(
                f"{entry.path} of {repository.asked.name} came with another {kind} than the "
                f"{entry.hash[:12]}… that the hub promises, so it was removed. Fetch it again "
                f"with: {repository.asked.again}; should that help nothing, a proxy or mirror on "
                "the way alters files"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)


def _fill(
    repository: Repository, entry: RepoFile, part: Path, tell: Callable[[int], object]
) -> None:
    """Bytes are appended to the part until it has its size, or does not grow any more."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if size_there(part) > (entry.size or 0):
        part.unlink()
    part.touch()
    while (had := size_there(part)) != entry.size:
        with part.open("ab") as stream:
            try:
                return _get(repository, entry, stream, had, tell)
            except HfHubHTTPError as error:
                if error.response.status_code != 416:  # the hub's file ends before the part does
                    raise
                return None
            except httpx2.ReadError:  # the one break that http_get does not mend itself
                if stream.tell() == had:
                    raise


def _get(
    repository: Repository,
    entry: RepoFile,
    stream: BinaryIO,
    had: int,
    tell: Callable[[int], object],
) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    asked = repository.asked
    http_get(
        hf_hub_url(asked.name, entry.path, revision=repository.commit, endpoint=asked.address),
        stream,
        resume_size=had,
        headers=build_hf_headers(
            library_name=_LIBRARY,
            library_version=__version__,
            headers={"Accept-Encoding": "identity"},  # a range of a compressed body is no range
        ),
        tqdm_class=_counting(had, tell),
    )


def _counting(had: int, tell: Callable[[int], object]) -> type[Any]:
    """A progress bar as http_get makes itself one, which only passes on how many bytes came."""

    class Counting:
        def __init__(self, *, initial: int, **_: object) -> None:
            tell(initial - had)  # below 0 when the server begins anew

        def __enter__(self) -> "Counting":
            return self

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

        def update(self, count: int) -> None:
            tell(count)

    return Counting


def _no_hub(asked: RepoRequest) -> DownloadError:
    return DownloadError(
        f"{asked.address} answers, but not as a hub does: is a login page or a proxy in between? "
        f"Check HF_ENDPOINT and the network, then: {asked.again}"
    )
