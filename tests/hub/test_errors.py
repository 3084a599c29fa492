"""What a hub, a token or a network can refuse: one line each, with the next command."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.conftest import Download
from tests.hub.test_download import command
from tests.support.fake_hub import BASE, Hub, closed_port

AGAIN = "then: aura download sdxl --accept-license"


def gated(status: int) -> Callable[[Hub], None]:
    def change(hub: Hub) -> None:
        hub.shelves[BASE].gated = status

    return change


def private(hub: Hub) -> None:
    hub.shelves[BASE].tokens = ("good",)


def gone(hub: Hub) -> None:
    del hub.shelves[BASE]


def refusing(status: int) -> Callable[[Hub], None]:
    def change(hub: Hub) -> None:
        hub.refuses = status

    return change


def behind_a_login(hub: Hub) -> None:
    hub.says = "<html>Sign in to the café's network</html>"


def no_list(hub: Hub) -> None:
    hub.says = "[]"


TROUBLES: dict[str, tuple[Callable[[Hub], None], str | None, str]] = {
    "gated, not on the list": (
        gated(403),
        "good",
        f"error {BASE} is gated (403): accept its terms on {{hub}}/{BASE}, then: hf auth login, "
        f"{AGAIN}",
    ),
    "gated, no token": (gated(401), None, f"is gated (401): accept its terms on {{hub}}/{BASE}, "),
    "a bad token": (
        private,
        "bad",
        "error {hub} does not take your token (401): log in anew with: hf auth login (HF_TOKEN, "
        f"where it is set, wins over that), {AGAIN}",
    ),
    "no such repository, no token": (gone, None, f"error {BASE} is not there, or is private (401)"),
    "no such repository": (
        gone,
        "good",
        f"error {BASE} is not there, or is private (404): check the name on {{hub}}/{BASE}; to a "
        f"private one your token must have access: hf auth login, {AGAIN}",
    ),
    "a token with too few rights": (
        refusing(403),
        "good",
        f"error your token may not read {BASE} (403): accept the terms on {{hub}}/{BASE}, give ",
    ),
    "a hub that is down": (
        refusing(503),
        None,
        "error {hub} answers 503 (come back later). What came is kept; go on later with: aura",
    ),
    "a login page": (
        behind_a_login,
        None,
        "error {hub} answers, but not as a hub does: is a login",
    ),
    "something else": (no_list, None, "error {hub} answers, but not as a hub does: is a login"),
}


@pytest.mark.parametrize("name", list(TROUBLES))
def test_a_refusal_is_told_in_one_line(
    hub: Hub, run: Download, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, token, sentence = TROUBLES[name]
    change(hub)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    status, told = run()
    assert status == 2
    assert sentence.format(hub=hub.address) in told
    assert len(told.splitlines()) == 1
    assert not Path("models").exists()


def test_an_unknown_revision_is_told(run: Download) -> None:
    status, told = run(revision="v9")
    assert status == 2
    assert f"{BASE} has no revision v9 (404): choose one of http://" in told
    assert "/commits, or give --revision main" in told


def test_a_token_opens_what_is_private_and_goes_to_the_hub_alone(
    hub: Hub, run: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    private(hub)
    monkeypatch.setenv("HF_TOKEN", "good")
    status, told = run()
    assert status == 0, told
    sent = {request.path.startswith("/cdn/"): request.authorization for request in hub.log}
    assert sent == {True: None, False: "Bearer good"}


def test_a_network_that_is_not_there_is_told(run: Download) -> None:
    address = f"http://127.0.0.1:{closed_port()}"
    status, told = run(address=address)
    assert status == 2
    assert f"error {address} can't be reached ([Errno " in told
    assert "Connection refused): check the network, and HTTPS_PROXY where there is" in told
    assert told.endswith(f"{AGAIN}\n")


@pytest.mark.parametrize("address", ["huggingface.co", "http://hub:port", "ftp://hub.example"])
def test_an_address_that_is_none_is_told(run: Download, address: str) -> None:
    status, told = run(address=address)
    assert status == 2
    assert f"HF_ENDPOINT={address} is no address like https://huggingface.co" in told


def test_a_name_that_no_hub_has_is_told(run: Download) -> None:
    status, told = run("artist/a--b")
    assert status == 2
    assert "error artist/a--b is no name of a repository: " in told


@pytest.mark.parametrize(
    ("silent", "extra", "sentence"),
    [
        (True, {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}, "said nothing for 1 s. What came is kept; go on"),
        (False, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids the network: unset it, then: au"),
        (False, {"MODEL_PRECISION": "fp8"}, "error MODEL_PRECISION=fp8: "),
    ],
)
def test_the_variables_of_huggingface_hub_and_ours_are_obeyed(
    hub: Hub, silent: bool, extra: dict[str, str], sentence: str
) -> None:
    hub.silent = silent
    line, environment = command(hub, "sdxl", "--accept-license", **extra)
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_repository_of_another_kind_is_told(hub: Hub, run: Download) -> None:
    del hub.shelves[BASE].files["model_index.json"]
    status, told = run()
    assert status == 2
    assert f"error {BASE} is no diffusers repository: it has no model_index.json" in told
    hub.shelves[BASE].files["model_index.json"] = b"[]"
    status, told = run()
    assert status == 2
    assert f"error {BASE} has an unreadable model_index.json. Choose another repository" in told
