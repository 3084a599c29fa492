"""Turn every failure of the hub, the network or the disk into a `DownloadError`.

The errors of huggingface_hub and of its HTTP client; no files, no stages.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from serve_app.core.errors import DownloadError
from serve_app.hub.selection import RepoRequest

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_KEPT = "What arrived is kept"
_MAX_CHARS = 200  # of a foreign error's first line


@contextmanager
def hub_errors(request: RepoRequest) -> Iterator[None]:
    """Raise `DownloadError` for whatever the hub, the network or the disk does wrong inside."""
    import httpx2
    from huggingface_hub.errors import HFValidationError, OIDCError

    try:
        yield
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, OIDCError) as error:
        raise _to_download_error(error, request) from None


def _to_download_error(error: Exception, request: RepoRequest) -> DownloadError:
    """Return the error for a failure before or beside an HTTP response."""
    import httpx2
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        OIDCError,
    )

    hub, command = request.endpoint, request.command
    match error:
        case HfHubHTTPError():
            return _to_response_error(error, request)
        case HFValidationError():
            return DownloadError(
                f"is not a valid repository name: {_first_line(error)}",
                subject=request.name,
                remedy="Use the OWNER/NAME of a repository",
            )
        case OIDCError():
            return DownloadError(
                f"no token was issued: {_first_line(error)}",
                remedy=f"Unset HF_OIDC_RESOURCE, then run: {command}",
            )
        case OfflineModeIsEnabled():
            return DownloadError(
                "forbids network access",
                subject="HF_HUB_OFFLINE",
                remedy=f"Unset it, then run: {command}",
            )
        case httpx2.TimeoutException():
            return DownloadError(
                f"sent nothing for {HF_HUB_DOWNLOAD_TIMEOUT} s",
                subject=hub,
                remedy=f"{_KEPT}; resume with: {command}, or with a longer timeout: "
                f"HF_HUB_DOWNLOAD_TIMEOUT=60 {command}",
            )
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return DownloadError(
                "is not a URL like https://huggingface.co",
                subject=f"HF_ENDPOINT={hub}",
                remedy=f"Correct or unset it, then run: {command}",
            )
        case httpx2.ConnectError() | httpx2.ProxyError():
            return DownloadError(
                f"can't be reached ({_first_line(error)})",
                subject=hub,
                remedy="Check the network, and HTTPS_PROXY if there is a proxy, then run: "
                f"{command}",
            )
        case httpx2.HTTPError():
            return DownloadError(
                f"broke off the connection ({_first_line(error)})",
                subject=hub,
                remedy=f"{_KEPT}; resume with: {command}",
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return DownloadError(
                "the disk is full",
                remedy=f"{_KEPT}. Free some space or choose another disk with --folder, then run: "
                f"{command}",
            )
        case _:
            return DownloadError(str(error), remedy=f"Correct that, then run: {command}")


def _to_response_error(error: "HfHubHTTPError", request: RepoRequest) -> DownloadError:
    """Return the error for an HTTP status of the hub."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status, hub, command = error.response.status_code, request.endpoint, request.command
    match error:
        case GatedRepoError():
            return DownloadError(
                f"is gated ({status})",
                subject=request.name,
                remedy=f"Accept its terms on {request.page}, then run: hf auth login, then: "
                f"{command}",
            )
        case RepositoryNotFoundError():
            return DownloadError(
                f"does not exist, or is private ({status})",
                subject=request.name,
                remedy=f"Check the name on {request.page}. A private repository needs a token with "
                f"access to it: hf auth login, then: {command}",
            )
        case RevisionNotFoundError():
            return DownloadError(
                f"has no revision {request.revision} ({status})",
                subject=request.name,
                remedy=f"Choose one from {request.page}/commits, or pass --revision main",
            )
    if status == 401:
        return DownloadError(
            "rejects your token (401)",
            subject=hub,
            remedy="Log in again: hf auth login (HF_TOKEN, if set, takes precedence), then: "
            f"{command}",
        )
    if status == 403:
        return DownloadError(
            "can't be read with your token (403)",
            subject=request.name,
            remedy=f"Accept the terms on {request.page}, give the token that permission on "
            f"{hub}/settings/tokens, then run: {command}",
        )
    reason = _first_line(error.server_message) if error.server_message else "no reason given"
    return DownloadError(
        f"answers {status} ({reason})",
        subject=hub,
        remedy=f"{_KEPT}; resume later with: {command}",
    )


def _first_line(message: object) -> str:
    lines = str(message).strip().splitlines()
    return lines[0][:_MAX_CHARS].rstrip(".:") if lines else type(message).__name__
