"""Downloads that break, stop, are altered or do not fit: what is kept and what is deleted."""

import signal
import subprocess
from pathlib import Path
from typing import Literal

import pytest
from rich.filesize import decimal

from serve_app.core.diffusion.spec import Stage
from serve_app.hub.client import fetch_file, get_repository
from serve_app.hub.local_files import download_lock
from serve_app.hub.selection import RepoRequest
from serve_app.runtime.checkpoints.checkpoint import inspect
from tests.support.fake_hub import (
    BASE,
    Cut,
    FakeHub,
    RunDownload,
    download_command,
    hash_of,
    with_ballast,
)
from tests.support.waiting import until

FOLDER = Path("models/sdxl-base")
BIG = "text_encoder_2/model.safetensors"
SMALL = "vae/diffusion_pytorch_model.safetensors"
TEXT = "tokenizer/merges.txt"
SIZE = 24_000_000  # http_get writes ten million bytes at a time
COMMAND = "aura download sdxl --accept-license"


@pytest.fixture
def big(hub: FakeHub) -> bytes:
    """Make the text encoder large enough for a download to break in the middle."""
    content = with_ballast(hub.repos[BASE].files[BIG], SIZE)
    hub.repos[BASE].files[BIG] = content
    return content


def part(hub: FakeHub, path: str) -> Path:
    return FOLDER / ".parts" / hash_of(path, hub.repos[BASE].files[path])


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_broken_download_is_resumed_in_the_same_run(
    hub: FakeHub, run: RunDownload, big: bytes, how: Literal["close", "reset"]
) -> None:
    hub.repos[BASE].cuts[BIG] = [Cut(21_000_000, how)]
    status, output = run()
    assert status == 0, output
    first, second = hub.ranges_of(BIG)
    assert first is None
    assert second in ("bytes=10485760-", "bytes=20971520-")
    assert (FOLDER / BIG).read_bytes() == big


def test_the_next_run_resumes_a_broken_download(hub: FakeHub, run: RunDownload, big: bytes) -> None:
    hub.repos[BASE].cuts[BIG] = [Cut(21_000_000, "reset"), Cut(0, "reset")]
    status, output = run()
    assert status == 2
    assert f"{hub.address} broke off the connection (" in output
    assert f"What arrived is kept; resume with: {COMMAND}" in output
    size = part(hub, BIG).stat().st_size
    assert size >= 10_000_000
    assert not (FOLDER / BIG).exists()
    hub.requests.clear()
    status, output = run()
    assert status == 0, output
    assert hub.ranges_of(BIG) == [f"bytes={size}-"]
    assert hub.requested_files() == {"model_index.json", BIG}
    assert (FOLDER / BIG).read_bytes() == big
    assert not (FOLDER / ".parts").exists()
    assert inspect(FOLDER, Stage.BASE).name == "sdxl-base"


def test_the_bytes_that_arrive_are_counted(hub: FakeHub, big: bytes) -> None:
    part(hub, BIG).parent.mkdir(parents=True)
    part(hub, BIG).write_bytes(big[:1_000_000])
    hub.repos[BASE].cuts[BIG] = [Cut(21_000_000, "close")]
    repository = get_repository(RepoRequest(BASE, "main", hub.address, "aura download"))
    (file,) = [file for file in repository.files if file.path == BIG]
    counts: list[int] = []
    fetch_file(repository, file, FOLDER, counts.append)
    assert len(hub.ranges_of(BIG)) == 2
    assert sum(counts) == len(big) - 1_000_000


def test_ctrl_c_keeps_what_arrived_and_the_same_command_resumes(
    hub: FakeHub, run: RunDownload, big: bytes
) -> None:
    hub.repos[BASE].cuts[BIG] = [Cut(21_000_000, "stall")]
    line, environment = download_command(hub, "sdxl", "--accept-license")
    process = subprocess.Popen(
        line,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # as in a terminal: a test run in the background may ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert hub.stalled.wait(60)
    until(lambda: part(hub, BIG).stat().st_size >= 20_000_000)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output.endswith(f"stopped. What arrived is kept; resume with: {COMMAND}\n")
    assert "Traceback" not in output
    assert not Path(".env.local").exists()
    assert run()[0] == 0
    assert hub.ranges_of(BIG)[1] in ("bytes=20971520-", "bytes=21000000-")
    assert (FOLDER / BIG).read_bytes() == big


@pytest.mark.parametrize("path", [SMALL, TEXT])
@pytest.mark.parametrize("change", ["other", "shorter", "longer"])
def test_wrong_content_is_deleted(hub: FakeHub, run: RunDownload, path: str, change: str) -> None:
    content = hub.repos[BASE].files[path]
    hub.repos[BASE].altered[path] = {
        "other": content[:-1] + b"!",
        "shorter": content[:-1],
        "longer": content + b"!",
    }[change]
    status, output = run()
    assert status == 2
    kind = "sha256" if path == SMALL else "git hash"
    assert f"{path} of {BASE} arrived with another {kind} than the " in output
    assert f"and was deleted. Download it again: {COMMAND}" in output
    assert not part(hub, path).exists()
    assert not (FOLDER / path).exists()
    assert not Path(".env.local").exists()
    hub.repos[BASE].altered.clear()
    assert run()[0] == 0
    assert (FOLDER / path).read_bytes() == content


def test_a_part_longer_than_the_file_is_downloaded_again(hub: FakeHub, run: RunDownload) -> None:
    part(hub, SMALL).parent.mkdir(parents=True)
    part(hub, SMALL).write_bytes(bytes(1_000_000))
    assert run()[0] == 0
    assert hub.ranges_of(SMALL) == [None]


def test_a_part_that_the_hub_can_not_complete_is_deleted(hub: FakeHub, run: RunDownload) -> None:
    content = hub.repos[BASE].files[SMALL]
    part(hub, SMALL).parent.mkdir(parents=True)
    part(hub, SMALL).write_bytes(content[:-1])
    hub.repos[BASE].altered[SMALL] = content[:-1]
    status, output = run()
    assert status == 2
    assert hub.ranges_of(SMALL) == [f"bytes={len(content) - 1}-"]
    assert "arrived with another sha256" in output
    assert not part(hub, SMALL).exists()


def test_too_small_a_disk_is_an_error_before_the_download(
    hub: FakeHub, run: RunDownload, big: bytes
) -> None:
    whole = sum(len(c) for path, c in hub.repos[BASE].files.items() if path != "training.json")
    status, output = run(free=whole + 499_999_999)
    assert status == 2
    assert f"error models has {decimal(whole + 499_999_999)} free, and" in output
    assert f"are needed: {decimal(whole)} to download and 500.0 MB that stay free" in output
    assert f"choose another disk with --folder, then run: {COMMAND}" in output
    assert hub.requested_files() == {"model_index.json"}
    part(hub, BIG).write_bytes(big[:1_000_000])
    status, output = run(free=whole + 499_000_000)
    assert status == 0, output
    assert hub.ranges_of(BIG) == ["bytes=1000000-"]


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="only Linux has a device that is always full"
)
def test_a_disk_that_fills_up_during_the_download_is_an_error(
    hub: FakeHub, run: RunDownload
) -> None:
    part(hub, SMALL).parent.mkdir(parents=True)
    part(hub, SMALL).symlink_to("/dev/full")
    status, output = run()
    assert status == 2
    assert (
        "error the disk is full. What arrived is kept. Free some space or choose another" in output
    )
    assert COMMAND in output


def test_two_downloads_into_one_folder_do_not_run_at_once(hub: FakeHub, run: RunDownload) -> None:
    with download_lock(FOLDER, "aura download"):
        status, output = run()
    assert status == 2
    assert (
        f"another download into {FOLDER} is running. Wait until it ends, then run: {COMMAND}"
        in output
    )
    assert run()[0] == 0
