"""Transfers that break, stop, lie or find no room: what is kept, what is removed, what is said."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.filesize import decimal

from serve_app.core.diffusion.spec import Stage
from serve_app.hub.local_files import alone
from serve_app.runtime.checkpoints.checkpoint import inspect
from tests.hub.conftest import Download
from tests.hub.test_download import command
from tests.support.fake_hub import BASE, Cut, Hub, described, weights

FOLDER = Path("models/sdxl-base")
BIG = "text_encoder_2/model.safetensors"
SMALL = "vae/diffusion_pytorch_model.safetensors"
TEXT = "tokenizer/merges.txt"
SIZE = 24_000_000 // 256 * 256  # http_get writes ten million bytes at a time
AGAIN = "aura download sdxl --accept-license"


@pytest.fixture
def big(hub: Hub) -> bytes:
    """The hub's text encoder is large enough to be broken in the middle."""
    content = weights(SIZE)
    hub.shelves[BASE].files[BIG] = content
    return content


def part(hub: Hub, path: str) -> Path:
    facts = described(path, hub.shelves[BASE].files[path])
    lfs = facts.get("lfs")
    return FOLDER / ".parts" / str(lfs["sha256"] if isinstance(lfs, dict) else facts["blobId"])


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_broken_transfer_goes_on_in_the_same_run(
    hub: Hub, run: Download, big: bytes, how: str
) -> None:
    hub.shelves[BASE].cuts[BIG] = [Cut(21_000_000, how)]
    status, told = run()
    assert status == 0, told
    first, second = hub.asked_for(BIG)
    assert first is None
    assert second in ("bytes=10485760-", "bytes=20971520-")
    assert (FOLDER / BIG).read_bytes() == big


def test_a_broken_transfer_goes_on_where_it_stopped(hub: Hub, run: Download, big: bytes) -> None:
    hub.shelves[BASE].cuts[BIG] = [Cut(21_000_000, "reset"), Cut(0, "reset")]
    status, told = run()
    assert status == 2
    assert f"the connection to {hub.address} broke (" in told
    assert f"What came is kept; go on with: {AGAIN}" in told
    there = part(hub, BIG).stat().st_size
    assert there >= 10_000_000 and not (FOLDER / BIG).exists()
    hub.log.clear()
    status, told = run()
    assert status == 0, told
    assert hub.asked_for(BIG) == [f"bytes={there}-"]
    assert hub.fetched() == {"model_index.json", BIG}
    assert (FOLDER / BIG).read_bytes() == big
    assert not (FOLDER / ".parts").exists()
    assert inspect(FOLDER, Stage.BASE).name == "sdxl-base"


def test_ctrl_c_keeps_what_came_and_the_same_command_goes_on(
    hub: Hub, run: Download, big: bytes
) -> None:
    hub.shelves[BASE].cuts[BIG] = [Cut(21_000_000, "stall")]
    line, environment = command(hub, "sdxl", "--accept-license")
    process = subprocess.Popen(
        line,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # As a terminal has it: whoever runs this test in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: part(hub, BIG).exists() and part(hub, BIG).stat().st_size >= 20_000_000)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told.endswith(f"stopped. What came is kept; go on with: {AGAIN}\n")
    assert "Traceback" not in told and not Path(".env.local").exists()
    assert run()[0] == 0
    assert hub.asked_for(BIG)[1] in ("bytes=20971520-", "bytes=21000000-")
    assert (FOLDER / BIG).read_bytes() == big


@pytest.mark.parametrize("path", [SMALL, TEXT])
@pytest.mark.parametrize("change", ["other", "shorter", "longer"])
def test_a_wrong_content_is_removed_and_told(
    hub: Hub, run: Download, path: str, change: str
) -> None:
    content = hub.shelves[BASE].files[path]
    hub.shelves[BASE].altered[path] = {
        "other": content[:-1] + b"!",
        "shorter": content[:-1],
        "longer": content + b"!",
    }[change]
    status, told = run()
    assert status == 2
    kind = "sha256" if path == SMALL else "git hash"
    assert f"{path} of {BASE} came with another {kind} than the " in told
    assert f"so it was removed. Fetch it again with: {AGAIN}" in told
    assert not part(hub, path).exists() and not (FOLDER / path).exists()
    assert not Path(".env.local").exists()
    hub.shelves[BASE].altered.clear()
    assert run()[0] == 0
    assert (FOLDER / path).read_bytes() == content


def test_a_part_longer_than_the_file_begins_anew(hub: Hub, run: Download) -> None:
    part(hub, SMALL).parent.mkdir(parents=True)
    part(hub, SMALL).write_bytes(bytes(1_000_000))
    assert run()[0] == 0
    assert hub.asked_for(SMALL) == [None]


def test_a_part_that_the_hub_has_no_more_of_is_removed(hub: Hub, run: Download) -> None:
    content = hub.shelves[BASE].files[SMALL]
    part(hub, SMALL).parent.mkdir(parents=True)
    part(hub, SMALL).write_bytes(content[:-1])
    hub.shelves[BASE].altered[SMALL] = content[:-1]
    status, told = run()
    assert status == 2
    assert hub.asked_for(SMALL) == [f"bytes={len(content) - 1}-"]
    assert "came with another sha256" in told and not part(hub, SMALL).exists()


def test_a_disk_too_small_is_told_before_anything_is_fetched(
    hub: Hub, run: Download, big: bytes
) -> None:
    whole = sum(len(c) for path, c in hub.shelves[BASE].files.items() if path != "training.json")
    status, told = run(free=whole + 499_999_999)
    assert status == 2
    assert f"error models has {decimal(whole + 499_999_999)} free, and" in told
    assert f"are needed: {decimal(whole)} are still to fetch, 500.0 MB stay free. Make room" in told
    assert f"choose another disk with --folder, then: {AGAIN}" in told
    assert hub.fetched() == {"model_index.json"}
    part(hub, BIG).write_bytes(big[:1_000_000])
    status, told = run(free=whole + 499_000_000)
    assert status == 0, told
    assert hub.asked_for(BIG) == ["bytes=1000000-"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk always full")
def test_a_disk_that_fills_meanwhile_is_told(hub: Hub, run: Download) -> None:
    part(hub, SMALL).parent.mkdir(parents=True)
    part(hub, SMALL).symlink_to("/dev/full")
    status, told = run()
    assert status == 2
    assert "error the disk is full. What came is kept: make room or choose another disk" in told
    assert AGAIN in told


def test_two_downloads_into_one_folder_do_not_mix(hub: Hub, run: Download) -> None:
    with alone(FOLDER, "again"):
        status, told = run()
    assert status == 2
    assert f"another download into {FOLDER} is running: wait for its end, then: {AGAIN}" in told
    assert run()[0] == 0
