"""Failures of the hub, the token or the network: each is one line with the next command."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fake_hub import BASE, FakeHub, RunDownload, download_command
from tests.support.ports import free_port

COMMAND = "aura download sdxl --accept-license"


def gated(status: int) -> Callable[[FakeHub], None]:
    def change(hub: FakeHub) -> None:
        hub.repos[BASE].gated = status

    return change


def private(hub: FakeHub) -> None:
    hub.repos[BASE].tokens = ("good",)


def removed(hub: FakeHub) -> None:
    del hub.repos[BASE]


def answering(status: int) -> Callable[[FakeHub], None]:
    def change(hub: FakeHub) -> None:
        hub.status = status

    return change


def behind_a_login(hub: FakeHub) -> None:
    hub.page = "<html>Sign in to the café's network</html>"


def no_list(hub: FakeHub) -> None:
    hub.page = "[]"


FAILURES: dict[str, tuple[Callable[[FakeHub], None], str | None, str]] = {
    "gated, not on the list": (
        gated(403),
        "good",
        f"error {BASE} is gated (403). Accept its terms on {{hub}}/{BASE}, then run: hf auth "
        f"login, then: {COMMAND}",
    ),
    "gated, no token": (gated(401), None, f"is gated (401). Accept its terms on {{hub}}/{BASE}, "),
    "a bad token": (
        private,
        "bad",
        "error {hub} rejects your token (401). Log in again: hf auth login (HF_TOKEN, if set, "
        f"takes precedence), then: {COMMAND}",
    ),
    "no such repository, no token": (
        removed,
        None,
        f"error {BASE} does not exist, or is private (401)",
    ),
    "no such repository": (
        removed,
        "good",
        f"error {BASE} does not exist, or is private (404). Check the name on {{hub}}/{BASE}. A "
        f"private repository needs a token with access to it: hf auth login, then: {COMMAND}",
    ),
    "a token with too few rights": (
        answering(403),
        "good",
        f"error {BASE} can't be read with your token (403). Accept the terms on {{hub}}/{BASE}, ",
    ),
    "a hub that is down": (
        answering(503),
        None,
        "error {hub} answers 503 (come back later). What arrived is kept; resume later with: aura",
    ),
    "a login page": (
        behind_a_login,
        None,
        "error {hub} does not answer as a model hub: a login page or a proxy",
    ),
    "something else": (no_list, None, "error {hub} does not answer as a model hub: a login page"),
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_a_failure_is_one_line_and_leaves_nothing_behind(
    hub: FakeHub, run: RunDownload, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, token, sentence = FAILURES[name]
    change(hub)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    status, output = run()
    assert status == 2
    assert sentence.format(hub=hub.address) in output
    assert len(output.splitlines()) == 1
    assert not Path("models").exists()


def test_an_unknown_revision_is_an_error(run: RunDownload) -> None:
    status, output = run(revision="v9")
    assert status == 2
    assert f"{BASE} has no revision v9 (404). Choose one from http://" in output
    assert "/commits, or pass --revision main" in output


def test_a_token_is_sent_to_the_hub_only(
    hub: FakeHub, run: RunDownload, monkeypatch: pytest.MonkeyPatch
) -> None:
    private(hub)
    monkeypatch.setenv("HF_TOKEN", "good")
    status, output = run()
    assert status == 0, output
    sent = {request.path.startswith("/cdn/"): request.authorization for request in hub.requests}
    assert sent == {True: None, False: "Bearer good"}


def test_a_hub_that_can_not_be_reached_is_an_error(run: RunDownload) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    status, output = run(endpoint=endpoint)
    assert status == 2
    assert f"error {endpoint} can't be reached ([Errno " in output
    assert "Connection refused). Check the network, and HTTPS_PROXY if there is a proxy" in output
    assert output.endswith(f"then run: {COMMAND}\n")


@pytest.mark.parametrize("endpoint", ["huggingface.co", "http://hub:port", "ftp://hub.example"])
def test_an_endpoint_that_is_not_a_url_is_an_error(run: RunDownload, endpoint: str) -> None:
    status, output = run(endpoint=endpoint)
    assert status == 2
    assert f"HF_ENDPOINT={endpoint} is not a URL like https://huggingface.co" in output


def test_an_invalid_repository_name_is_an_error(run: RunDownload) -> None:
    status, output = run("artist/a--b")
    assert status == 2
    assert "error artist/a--b is not a valid repository name: " in output


@pytest.mark.parametrize(
    ("is_silent", "variables", "message"),
    [
        (
            True,
            {"HF_HUB_DOWNLOAD_TIMEOUT": "1"},
            "sent nothing for 1 s. What arrived is kept; resume",
        ),
        (
            False,
            {"HF_HUB_OFFLINE": "1"},
            "HF_HUB_OFFLINE forbids network access. Unset it, then run: aura",
        ),
        (False, {"MODEL_PRECISION": "fp8"}, "error MODEL_PRECISION=fp8 must be "),
    ],
)
def test_the_variables_of_huggingface_hub_and_ours_are_obeyed(
    hub: FakeHub, is_silent: bool, variables: dict[str, str], message: str
) -> None:
    hub.is_silent = is_silent
    line, environment = download_command(hub, "sdxl", "--accept-license", **variables)
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_repository_without_a_readable_index_is_an_error(hub: FakeHub, run: RunDownload) -> None:
    del hub.repos[BASE].files["model_index.json"]
    status, output = run()
    assert status == 2
    assert f"error {BASE} is not a diffusers repository: it has no model_index.json" in output
    hub.repos[BASE].files["model_index.json"] = b"[]"
    status, output = run()
    assert status == 2
    assert f"error {BASE} has an unreadable model_index.json. Choose another repository" in output
