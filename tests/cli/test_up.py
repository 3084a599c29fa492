"""`aura up`: what it refuses before it starts anything, in one line with the remedy."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from serve_app.cli.console import REFUSED
from serve_app.cli.generate import generate
from serve_app.cli.up import up
from serve_app.config.settings import VARIABLES
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.ledger_store.opening import open_store
from serve_app.ledger_store.sqlite_store import SqliteStore
from tests.support.checkpoints import change_tensors, shard
from tests.support.ledger_stores import damage_page, fill
from tests.support.ports import free_port
from tests.support.tiny_checkpoints import edit_json, tiny_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "serve_config.yaml"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BACKEND_PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"HOST": "0.0.0.0"}, "HOST=0.0.0.0 lets other machines in, and API_KEYS is empty. Make a"),
        ({"HOST": "::"}, "HOST=:: lets other machines in, and API_KEYS is empty. Make a key: "),
        ({"HOST": "mybox"}, "HOST=mybox must be an address, such as 127.0.0.1, 0.0.0.0 or ::"),
        ({"HOST": "203.0.113.7", "API_KEYS": "k"}, "HOST=203.0.113.7 is not an address of this"),
        ({"RAY_TMPDIR": "/tmp/" + "x" * 94}, "has 99 bytes, and the paths of Ray's sockets leave"),
        (
            {"RAY_TMPDIR": "/dev/null"},
            "RAY_TMPDIR=/dev/null can't be used for Ray's files: /dev/nul",
        ),
        ({"LEDGER_FILE": "/dev/null/l"}, "LEDGER_FILE=/dev/null/l can't be created: /dev/null is"),
        ({"DRAIN_SPOOL": "/dev/null"}, "DRAIN_SPOOL=/dev/null is not a folder. Set DRAIN_SPOOL to"),
        ({"METRICS_PORT": "65536"}, "METRICS_PORT=65536 must be at most 65535"),
    ],
)
def test_an_address_that_may_not_or_can_not_be_used_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, str],
    sentence: str,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert up(CONFIG) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_a_ledger_of_another_service_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("LEDGER_FILE", str(file))
    other = open_store(LedgerFile(file))
    assert up(CONFIG, lock_wait_s=0) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"LEDGER_FILE={file} is in use by another service (process {os.getpid()} on " in line
    assert "Stop that service, or give this one another LEDGER_FILE" in line
    other.close()


def test_a_damaged_ledger_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("LEDGER_FILE", str(file))
    store = SqliteStore(LedgerFile(file))
    fill(store)
    store.close()
    damage_page(file)
    assert up(CONFIG, lock_wait_s=0) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"LEDGER_FILE={file} is damaged, or no ledger. Restore it from a backup" in line


def remove_a_tensor(folder: Path) -> None:
    change_tensors(folder / "text_encoder_2/model.safetensors", without="text_projection.weight")


def add_a_block(folder: Path) -> None:
    change_tensors(folder / UNET, change={"up_blocks.3.bias": torch.ones(2)})


def lose_a_shard(folder: Path) -> None:
    (folder / "unet" / shard(folder / UNET, 2)[1]).unlink()


UNET = "unet/diffusion_pytorch_model.safetensors"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no projection": (remove_a_tensor, "asks for (text_projection.weight)"),
    "surplus": (add_a_block, "that nothing reads (up_blocks.3.bias)"),
    "a lost shard": (lose_a_shard, "lacks 1 of 2 files that unet/"),
    "moving averages alone": (
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".non_ema.safetensors")),
        "it holds only diffusion_pytorch_model.non_ema.safetensors",
    ),
    "a pickle": (
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".bin")),
        "holds a pickle in unet",
    ),
    "an empty file": (lambda f: (f / UNET).write_bytes(b""), "which is empty"),
    "a bad config": (
        lambda f: edit_json(f / "unet/config.json", block_out_channels="x"),
        "has a unet/config.json whose block_out_channels must be a list, got 'x'",
    ),
}


@pytest.mark.parametrize("command", ["up", "generate"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_is_not_whole_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    command: str,
) -> None:
    act, problem = BROKEN[name]
    folder = tiny_checkpoint(tmp_path / "sdxl-base")
    act(folder)
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", str(folder))
    refused = up(CONFIG) if command == "up" else generate({"prompt": "a fox"}, Path("out.png"))
    assert refused == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"MODEL_CHECKPOINT_DIR={folder} " in line
    assert problem in line
    assert line.endswith("Get it whole with: aura download sdxl")


def test_checkpoints_are_checked_without_torch_or_ray(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "sdxl")
    remove_a_tensor(folder)
    script = (
        "import sys; from pathlib import Path; from serve_app.cli.up import up\n"
        f"status = up(Path({str(CONFIG)!r}))\n"
        "print(status, sorted({'torch', 'ray', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    environment = os.environ | {"MODEL_CHECKPOINT_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{REFUSED} []\n"
