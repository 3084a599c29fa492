"""A client of the model hub: repository metadata and file downloads, through huggingface_hub.

No terminal, no decisions. `hf_hub_download` starts every file from the beginning; its private
`http_get` can resume, so files are downloaded with that, verified, and then moved into place.
tests/hub/test_http_get.py states what this module expects of `http_get`.
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
from serve_app.hub.local_files import matches, part_path, size_on_disk
from serve_app.hub.selection import INDEX, RepoFile, RepoRequest, Repository

OnBytes = Callable[[int], object]  # called with each count of bytes that arrived
_LIBRARY = "aura-serve"
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_RANGE_NOT_SATISFIABLE = 416


def hub_endpoint() -> str:
    """Return the hub that HF_ENDPOINT names, or Hugging Face's own.

    Turns huggingface_hub's telemetry off, unless HF_HUB_DISABLE_TELEMETRY=0 is set.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # `hub_errors` reports problems
    return constants.ENDPOINT


def is_logged_in() -> bool:
    """Return whether a token is set or stored by `hf auth login`, without asking the hub."""
    from huggingface_hub import constants

    file = Path(constants.HF_TOKEN_PATH)
    return any(os.environ.get(name) for name in _TOKEN_VARIABLES) or (
        file.is_file() and file.stat().st_size > 0
    )


def get_repository(request: RepoRequest) -> Repository:
    """Return a repository at the commit that the requested revision means now.

    Raises `DownloadError`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=request.endpoint, library_name=_LIBRARY, library_version=__version__)
    with hub_errors(request):
        try:
            info = api.model_info(
                request.name,
                revision=request.revision,
                files_metadata=True,
                timeout=HF_HUB_DOWNLOAD_TIMEOUT,
            )
        except HFValidationError:
            raise
        except (ValueError, KeyError, TypeError):
            raise _not_a_hub(request) from None
    if not info.sha:
        raise _not_a_hub(request)
    card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}
    link = str(card.get("license_link") or "")
    return Repository(
        request=request,
        commit=info.sha,
        license=str(card.get("license_name") or card.get("license") or ""),
        license_url=link if link.startswith("http") else request.page,
        files=tuple(
            RepoFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in info.siblings or ()
        ),
    )


def read_index(repository: Repository) -> dict[str, Any]:
    """Return the model_index.json of a repository, without writing it to disk.

    Raises `DownloadError`.
    """
    name = repository.request.name
    file = next((file for file in repository.files if file.path == INDEX), None)
    if file is None:
        raise DownloadError(
            f"is not a diffusers repository: it has no {INDEX}",
            subject=name,
            remedy="Choose another repository",
        )
    content = BytesIO()
    with hub_errors(repository.request):
        _get(repository, file, content, 0, lambda _: None)
    try:
        index = json.loads(content.getvalue())
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise DownloadError(
            f"has an unreadable {INDEX}", subject=name, remedy="Choose another repository"
        )
    return index


def fetch_file(repository: Repository, file: RepoFile, folder: Path, on_bytes: OnBytes) -> None:
    """Download one file into a folder and verify its hash.

    An interrupted download keeps what arrived, and the next call resumes from it. Content with
    another hash than the hub announced is deleted. Raises `DownloadError`.
    """
    part, target = part_path(folder, file), folder / file.path
    request = repository.request
    with hub_errors(request):
        part.parent.mkdir(parents=True, exist_ok=True)
        _fill(repository, file, part, on_bytes)
        with part.open("rb") as stream:
            is_sound = matches(file, stream)
        if not is_sound:
            part.unlink()
            raise DownloadError(
                f"arrived with another {'sha256' if file.sha256 else 'git hash'} than the "
                f"{file.hash[:12]}… that the hub announces, and was deleted",
                subject=f"{file.path} of {request.name}",
                remedy=f"Download it again: {request.command}. If that fails too, a proxy or a "
                "mirror changes files on the way",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)


def _fill(repository: Repository, file: RepoFile, part: Path, on_bytes: OnBytes) -> None:
    """Append to the part file until it is complete, or the hub has no more of it."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if size_on_disk(part) > (file.size or 0):
        part.unlink()
    part.touch()
    while (size := size_on_disk(part)) != file.size:
        with part.open("ab") as stream:
            try:
                _get(repository, file, stream, size, on_bytes)
                return
            except HfHubHTTPError as error:  # 416: the hub's file ends before the part does
                if error.response.status_code != _RANGE_NOT_SATISFIABLE:
                    raise
                return
            except httpx2.ReadError:  # the one network error that http_get does not retry itself
                if stream.tell() == size:
                    raise


def _get(
    repository: Repository, file: RepoFile, stream: BinaryIO, resume_from: int, on_bytes: OnBytes
) -> None:
    """Append the content of a file, from a byte offset on, to a stream."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    request = repository.request
    http_get(
        hf_hub_url(request.name, file.path, revision=repository.commit, endpoint=request.endpoint),
        stream,
        resume_size=resume_from,
        headers=build_hf_headers(
            library_name=_LIBRARY,
            library_version=__version__,
            headers={"Accept-Encoding": "identity"},  # a range of a compressed body is useless
        ),
        tqdm_class=progress_class(resume_from, on_bytes),
    )


def progress_class(resume_from: int, on_bytes: OnBytes) -> type[Any]:
    """Return a stand-in for tqdm that passes byte counts on and shows nothing."""

    class Progress:
        def __init__(self, *, initial: int, **_: object) -> None:
            on_bytes(initial - resume_from)  # below 0 if the server starts from the beginning

        def __enter__(self) -> "Progress":
            return self

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

        def update(self, count: int) -> None:
            on_bytes(count)

    return Progress


def _not_a_hub(request: RepoRequest) -> DownloadError:
    return DownloadError(
        "does not answer as a model hub: a login page or a proxy may be in between",
        subject=request.endpoint,
        remedy=f"Check HF_ENDPOINT and the network, then run: {request.command}",
    )
