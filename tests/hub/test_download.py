"""The whole command against the hub on loopback: what is there afterwards, and what was said."""

import json
import os
import pty
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from serve_app.cli.download import Ask
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.checkpoints.licenses import RAIL
from tests.hub.conftest import ROOT, Download
from tests.support.fake_hub import BASE, COMMIT, LATER, Hub, Shelf, read, weights

FOLDER = Path("models/sdxl-base")


def acceptance_of(folder: Path = FOLDER) -> dict[str, str]:
    record: dict[str, str] = json.loads((folder / "acceptance.json").read_text())
    return record


def answers(*said: str, asked: list[str]) -> Ask:
    """A person: gives these answers, and keeps what was asked."""
    left = list(said)

    def ask(question: str) -> str:
        asked.append(question)
        return left.pop(0)

    return ask


def test_both_checkpoints_arrive_whole_and_the_service_is_told(hub: Hub, run: Download) -> None:
    for stage, shelf in zip(Stage, hub.shelves.values(), strict=True):
        shelf.files = read(demo_folder(stage))
    example = Path(".env.example").read_bytes()
    status, told = run("all")
    assert status == 0, told
    for stage, folder in zip(Stage, ("sdxl-base", "sdxl-refiner"), strict=True):
        there = read(Path("models") / folder)
        del there["acceptance.json"]
        served = read(demo_folder(stage))
        del served["training.json"]  # nothing needs it
        assert there == served
        assert inspect(Path("models", folder), stage).name == folder
    assert Path(".env.local").read_bytes() == example.replace(
        b"\nMODEL_CHECKPOINT_DIR=\n", b"\nMODEL_CHECKPOINT_DIR=./models/sdxl-base\n"
    ).replace(
        b"\nMODEL_REFINER_CHECKPOINT_DIR=\n",
        b"\nMODEL_REFINER_CHECKPOINT_DIR=./models/sdxl-refiner\n",
    )
    assert "to ./models/sdxl-base" in told and "files to fetch, " in told and " MB" in told
    assert told.endswith("Next: make serve, or aura up\n")


@pytest.mark.parametrize(
    ("precision", "form"), [("fp16", "fp16."), ("bf16", "fp16."), (None, "fp16."), ("fp32", "")]
)
def test_the_precision_chooses_the_files(
    hub: Hub,
    run: Download,
    monkeypatch: pytest.MonkeyPatch,
    precision: str | None,
    form: str,
) -> None:
    if precision:
        monkeypatch.setenv("MODEL_PRECISION", precision)
    files = hub.shelves[BASE].files
    for path in [path for path in files if path.endswith(".safetensors")]:
        files[path.replace(".safetensors", ".fp16.safetensors")] = weights(2048, path)
    files |= {"sd_xl_base_1.0.safetensors": weights(512), "unet/model.onnx": b"onnx"}
    assert run("sdxl")[0] == 0
    fetched = {path for path in hub.fetched() if "safetensors" in path or "onnx" in path}
    assert fetched == {
        f"text_encoder/model.{form}safetensors",
        f"text_encoder_2/model.{form}safetensors",
        f"unet/diffusion_pytorch_model.{form}safetensors",
        f"vae/diffusion_pytorch_model.{form}safetensors",
    }
    assert inspect(FOLDER, Stage.BASE).variant == ("fp16" if form else None)


def test_full_files_that_lie_there_already_serve_in_any_precision(
    hub: Hub, run: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = hub.shelves[BASE].files
    for path in [path for path in files if path.endswith(".safetensors")]:
        files[path.replace(".safetensors", ".fp16.safetensors")] = weights(2048, path)
    monkeypatch.setenv("MODEL_PRECISION", "fp32")
    assert run()[0] == 0
    monkeypatch.setenv("MODEL_PRECISION", "fp16")
    status, told = run()
    assert status == 0 and "files to fetch" not in told
    (FOLDER / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert run()[0] == 0
    assert (FOLDER / "vae/diffusion_pytorch_model.fp16.safetensors").exists()
    assert inspect(FOLDER, Stage.BASE).variant == "fp16"


def test_the_licence_is_shown_asked_and_recorded_once(hub: Hub, run: Download) -> None:
    asked: list[str] = []
    status, told = run(accept_license=False, ask=answers("yes", asked=asked))
    assert status == 0, told
    assert asked == ["Do you accept? [y/N] "]
    url = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"
    assert RAIL in told and url in told and "exploiting or harming minors" in told
    record = acceptance_of()
    accepted = datetime.fromisoformat(record.pop("accepted_at"))
    assert accepted.utcoffset() is not None and accepted.timestamp() <= datetime.now().timestamp()
    assert record == {
        "repository": BASE,
        "revision": COMMIT,
        "license": RAIL,
        "license_url": url,
    }
    before = acceptance_of() | {"accepted_at": "2026-01-02T03:04:05+00:00"}
    (FOLDER / "acceptance.json").write_text(json.dumps(before))
    status, told = run(accept_license=False, ask=answers(asked=asked))
    assert (status, len(asked)) == (0, 1)
    assert acceptance_of() == before
    assert "licence of" not in told and "files to fetch" not in told


def test_a_licence_not_accepted_leaves_nothing_behind(hub: Hub, run: Download) -> None:
    status, told = run(accept_license=False, ask=answers("", asked=[]))
    assert status == 2
    assert "the licence was not accepted, so nothing was fetched. Read it at https://" in told
    assert hub.fetched() == {"model_index.json"}
    assert {path.name for path in Path().iterdir()} == {".env.example"}


def test_a_licence_that_changed_is_asked_for_again(hub: Hub, run: Download) -> None:
    hub.shelves["artist/fox"] = Shelf(hub.shelves[BASE].files, {"license": "mit"})
    assert run("artist/fox")[0] == 0
    hub.shelves["artist/fox"].card = {"license": "other", "license_name": "fox-nc"}
    asked: list[str] = []
    assert run("artist/fox", accept_license=False, ask=answers("n", asked=asked))[0] == 2
    assert asked and acceptance_of(Path("models/fox"))["license"] == "mit"


@pytest.mark.parametrize(
    ("card", "name", "url", "restricted"),
    [
        ({"license": "openrail++"}, RAIL, "{hub}/artist/fox", True),
        ({"license": "creativeml-openrail-m"}, "creativeml-openrail-m", "{hub}/artist/fox", True),
        (
            {"license": "other", "license_name": "fox-nc", "license_link": "https://fox.example/l"},
            "fox-nc",
            "https://fox.example/l",
            False,
        ),
        ({"license": "mit", "license_link": "LICENSE"}, "mit", "{hub}/artist/fox", False),
        ({}, "none named on its card", "{hub}/artist/fox", False),
    ],
)
def test_another_repository_has_the_licence_that_its_card_names(
    hub: Hub, run: Download, card: dict[str, object], name: str, url: str, restricted: bool
) -> None:
    hub.shelves["artist/fox"] = Shelf(hub.shelves[BASE].files, card)
    status, told = run("artist/fox")
    assert status == 0, told
    assert name in told and ("In short it forbids" in told) is restricted
    record = acceptance_of(Path("models/fox"))
    assert (record["license"], record["license_url"]) == (name, url.format(hub=hub.address))
    assert "MODEL_CHECKPOINT_DIR=./models/fox stands in .env.local" in told


def test_the_class_of_a_repository_decides_its_variable(
    hub: Hub, run: Download, small: dict[Stage, dict[str, bytes]]
) -> None:
    hub.shelves["artist/polish"] = Shelf(small[Stage.REFINER])
    status, told = run("artist/polish")
    assert status == 0, told
    assert "MODEL_REFINER_CHECKPOINT_DIR=./models/polish stands in .env.local" in told
    assert told.endswith("a refiner needs a base. Next: aura download sdxl\n")
    hub.shelves["artist/other"] = Shelf(
        {**small[Stage.BASE], "model_index.json": b'{"_class_name": "FluxPipeline"}'}
    )
    status, told = run("artist/other")
    assert status == 2
    assert "artist/other is no SDXL base or refiner: its model_index.json says FluxPipeline" in told
    assert not Path("models/other").exists()


def test_what_is_no_sdxl_inside_is_told_and_the_service_is_not_sent_there(
    hub: Hub, run: Download
) -> None:
    files = hub.shelves[BASE].files
    unet = json.loads(files["unet/config.json"]) | {"in_channels": 9}
    files["unet/config.json"] = json.dumps(unet).encode()
    status, told = run()
    assert status == 2
    assert f"{FOLDER.absolute()} is not SDXL: its latents have another shape" in told
    assert not Path(".env.local").exists()


def test_a_revision_is_resolved_once_and_kept_until_another_is_given(
    hub: Hub, run: Download
) -> None:
    shelf = hub.shelves[BASE]
    assert run()[0] == 0
    assert all(f"/resolve/{COMMIT}/" in r.path for r in hub.log if "/resolve/" in r.path)
    shelf.revisions = {"main": LATER, "old": COMMIT}
    assert run()[0] == 0
    assert hub.log[-1].path.endswith(f"/resolve/{COMMIT}/model_index.json")
    before = acceptance_of()
    assert run(revision="main")[0] == 0
    assert acceptance_of() == before | {"revision": LATER}


def test_a_run_after_a_whole_one_fetches_nothing_and_mends_what_was_spoilt(
    hub: Hub, run: Download
) -> None:
    assert run()[0] == 0
    file = FOLDER / "unet/diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    hub.log.clear()
    assert run()[0] == 0
    assert hub.fetched() == {"model_index.json"}
    file.write_bytes(whole[:-1] + b"!")
    hub.log.clear()
    assert run()[0] == 0
    assert file.read_bytes() == whole
    assert hub.fetched() == {"model_index.json", "unet/diffusion_pytorch_model.safetensors"}


def test_a_folder_of_another_repository_is_left_alone(hub: Hub, run: Download) -> None:
    for name in ("one/fox", "two/fox"):
        hub.shelves[name] = hub.shelves[BASE]
    assert run("one/fox")[0] == 0
    status, told = run("two/fox")
    assert status == 2
    assert "models/fox holds one/fox, not two/fox: choose another place with --folder" in told
    status, told = run("two/fox", folder=Path("with space"))
    assert status == 2 and "can't stand in .env.local" in told


def test_a_variable_in_the_environment_wins_and_that_is_said(
    run: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", "/elsewhere")
    status, told = run()
    assert status == 0
    assert "the environment says MODEL_CHECKPOINT_DIR=/elsewhere, and wins" in told


def command(hub: Hub, *options: str, **more: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.address, **more}
    del environment["HF_HUB_DISABLE_TELEMETRY"]
    return [sys.executable, "-m", "serve_app", "download", *options], environment


def test_without_a_terminal_the_flag_is_named(hub: Hub) -> None:
    line, environment = command(hub, "sdxl")
    done = subprocess.run(
        line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.endswith("then: aura download sdxl --accept-license\n")
    assert "no terminal to ask on: read it at https://huggingface.co/stabilityai" in done.stderr
    assert hub.fetched() == {"model_index.json"}


def test_a_person_at_a_terminal_is_asked(hub: Hub) -> None:
    line, environment = command(hub, "sdxl", TERM="dumb")
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n")
    done = subprocess.run(line, env=environment, stdin=theirs, capture_output=True, text=True)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "Do you accept? [y/N]" in done.stderr and "Traceback" not in done.stderr
    assert acceptance_of()["revision"] == COMMIT
    assert all(r.path.startswith(("/api/models/", f"/{BASE}/", "/cdn/")) for r in hub.log)
    assert inspect(FOLDER, Stage.BASE).name == "sdxl-base"
