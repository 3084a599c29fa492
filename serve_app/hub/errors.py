"""What can go wrong between here and a hub, each told in one sentence with the next command.

Knows huggingface_hub's errors and those of its HTTP client, and nothing of files and stages.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.core.errors import DownloadError
from serve_app.hub.selection import RepoRequest


@contextmanager
def hub_errors(asked: RepoRequest) -> Iterator[None]:
    """Whatever the hub, the network or the disk does wrong inside is raised as `DownloadError`."""
    import httpx2
    from huggingface_hub.errors import HFValidationError, OIDCError

    try:
        yield
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, OIDCError) as error:
        raise DownloadError(_sentence(error, asked)) from None


def _sentence(error: Exception, asked: RepoRequest) -> str:
    import httpx2
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        OIDCError,
    )

    again = f"then: {asked.again}"
    match error:
        case HfHubHTTPError():
            return _refusal(error, asked)
        case HFValidationError():
            return f"{asked.name} is no name of a repository: {_first_line(error)}"
        case OIDCError():
            return f"no token: {_first_line(error)}. Unset HF_OIDC_RESOURCE, {again}"
        case OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE forbids the network: unset it, {again}"
        case httpx2.TimeoutException():
            return (
                f"{asked.address} said nothing for {HF_HUB_DOWNLOAD_TIMEOUT} s. What came is kept; "
                f"go on with: {asked.again}, or with more patience: HF_HUB_DOWNLOAD_TIMEOUT=60 "
                f"{asked.again}"
            )
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return (
                f"HF_ENDPOINT={asked.address} is no address like https://huggingface.co: "
                f"mend or unset it, {again}"
            )
        case httpx2.ConnectError() | httpx2.ProxyError():
            return (
                f"{asked.address} can't be reached ({_first_line(error)}): check the network, and "
                f"HTTPS_PROXY where there is a proxy, {again}"
            )
        case httpx2.HTTPError():
            return (
                f"the connection to {asked.address} broke ({_first_line(error)}). What came is "
                f"kept; go on with: {asked.again}"
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return (
                "the disk is full. What came is kept: make room or choose another disk with "
                f"--folder, {again}"
            )
        case _:
            return f"{error}: mend it, {again}"


def _refusal(error: Exception, asked: RepoRequest) -> str:
    """What a status of the hub means to the one who asked."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    assert isinstance(error, HfHubHTTPError)
    status = error.response.status_code
    match error:
        case GatedRepoError():
            return (
                f"{asked.name} is gated ({status}): accept its terms on {asked.page}, then: "
                f"hf auth login, then: {asked.again}"
            )
        case RepositoryNotFoundError():
            return (
                f"{asked.name} is not there, or is private ({status}): check the name on "
                f"{asked.page}; to a private one your token must have access: hf auth login, then: "
                f"{asked.again}"
            )
        case RevisionNotFoundError():
            return (
                f"{asked.name} has no revision {asked.revision} ({status}): choose one of "
                f"{asked.page}/commits, or give --revision main"
            )
    if status == 401:
        return (
            f"{asked.address} does not take your token (401): log in anew with: hf auth login "
            f"(HF_TOKEN, where it is set, wins over that), then: {asked.again}"
        )
    if status == 403:
        return (
            f"your token may not read {asked.name} (403): accept the terms on {asked.page}, give "
            f"the token that permission on {asked.address}/settings/tokens, then: {asked.again}"
        )
    said = _first_line(error.server_message) if error.server_message else "without a word"
    return (
        f"{asked.address} answers {status} ({said}). What came is kept; go on later with: "
        f"{asked.again}"
    )


def _first_line(said: object) -> str:
    lines = str(said).strip().splitlines()
    return lines[0][:200].rstrip(".:") if lines else type(said).__name__
