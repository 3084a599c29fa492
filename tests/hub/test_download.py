"""The whole command against a fake hub: the files it leaves, and what it prints."""

import json
import os
import pty
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from serve_app.cli.download import Ask
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.checkpoints.licenses import RAIL
from tests.support.fake_hub import (
    BASE,
    COMMIT,
    LATER,
    FakeHub,
    FakeRepo,
    RunDownload,
    download_command,
    read_files,
)

FOLDER = Path("models/sdxl-base")


def acceptance_of(folder: Path = FOLDER) -> dict[str, str]:
    record: dict[str, str] = json.loads((folder / "acceptance.json").read_text())
    return record


def person(*answers: str, questions: list[str]) -> Ask:
    """Return a person who gives these answers; the questions are recorded."""
    remaining = list(answers)

    def ask(question: str) -> str:
        questions.append(question)
        return remaining.pop(0)

    return ask


def test_both_checkpoints_are_downloaded_and_put_into_env_local(
    hub: FakeHub, run: RunDownload
) -> None:
    for stage, repo in zip(Stage, hub.repos.values(), strict=True):
        repo.files = read_files(demo_folder(stage))
    example = Path(".env.example").read_bytes()
    status, output = run("all")
    assert status == 0, output
    for stage, folder in zip(Stage, ("sdxl-base", "sdxl-refiner"), strict=True):
        downloaded = read_files(Path("models") / folder)
        del downloaded["acceptance.json"]
        offered = read_files(demo_folder(stage))
        del offered["training.json"]  # nothing needs it
        assert downloaded == offered
        assert inspect(Path("models", folder), stage).name == folder
    assert Path(".env.local").read_bytes() == example.replace(
        b"\n#MODEL_CHECKPOINT_DIR=\n", b"\nMODEL_CHECKPOINT_DIR=./models/sdxl-base\n"
    ).replace(
        b"\n#MODEL_REFINER_CHECKPOINT_DIR=\n",
        b"\nMODEL_REFINER_CHECKPOINT_DIR=./models/sdxl-refiner\n",
    )
    assert "to ./models/sdxl-base" in output
    assert "files to download, " in output
    assert " MB" in output
    assert output.endswith("Next: make serve, or aura up\n")


@pytest.mark.parametrize(
    ("precision", "infix"), [("fp16", "fp16."), ("bf16", "fp16."), (None, "fp16."), ("fp32", "")]
)
def test_the_precision_determines_the_files(
    hub: FakeHub,
    run: RunDownload,
    monkeypatch: pytest.MonkeyPatch,
    precision: str | None,
    infix: str,
) -> None:
    if precision:
        monkeypatch.setenv("MODEL_PRECISION", precision)
    files = hub.repos[BASE].files
    for path in [path for path in files if path.endswith(".safetensors")]:
        files[path.replace(".safetensors", ".fp16.safetensors")] = files[path]
    files |= {"sd_xl_base_1.0.safetensors": b"weights", "unet/model.onnx": b"onnx"}
    assert run("sdxl")[0] == 0
    fetched = {path for path in hub.requested_files() if "safetensors" in path or "onnx" in path}
    assert fetched == {
        f"text_encoder/model.{infix}safetensors",
        f"text_encoder_2/model.{infix}safetensors",
        f"unet/diffusion_pytorch_model.{infix}safetensors",
        f"vae/diffusion_pytorch_model.{infix}safetensors",
    }
    inspect(FOLDER, Stage.BASE)


def test_full_precision_files_on_disk_serve_any_precision(
    hub: FakeHub, run: RunDownload, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = hub.repos[BASE].files
    for path in [path for path in files if path.endswith(".safetensors")]:
        files[path.replace(".safetensors", ".fp16.safetensors")] = files[path]
    monkeypatch.setenv("MODEL_PRECISION", "fp32")
    assert run()[0] == 0
    monkeypatch.setenv("MODEL_PRECISION", "fp16")
    status, output = run()
    assert status == 0
    assert "files to download" not in output
    (FOLDER / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert run()[0] == 0
    assert (FOLDER / "vae/diffusion_pytorch_model.fp16.safetensors").exists()
    inspect(FOLDER, Stage.BASE)


def test_the_licence_is_shown_accepted_and_recorded_once(hub: FakeHub, run: RunDownload) -> None:
    questions: list[str] = []
    status, output = run(accept_license=False, ask=person("yes", questions=questions))
    assert status == 0, output
    assert questions == ["Do you accept? [y/N] "]
    url = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"
    assert RAIL in output
    assert url in output
    assert "exploiting or harming minors" in output
    record = acceptance_of()
    accepted = datetime.fromisoformat(record.pop("accepted_at"))
    assert accepted.utcoffset() is not None
    assert accepted.timestamp() <= datetime.now().timestamp()
    assert record == {
        "repository": BASE,
        "revision": COMMIT,
        "license": RAIL,
        "license_url": url,
    }
    previous = acceptance_of() | {"accepted_at": "2026-01-02T03:04:05+00:00"}
    (FOLDER / "acceptance.json").write_text(json.dumps(previous))
    status, output = run(accept_license=False, ask=person(questions=questions))
    assert (status, len(questions)) == (0, 1)
    assert acceptance_of() == previous
    assert "licence of" not in output
    assert "files to download" not in output


def test_without_acceptance_nothing_is_downloaded(hub: FakeHub, run: RunDownload) -> None:
    status, output = run(accept_license=False, ask=person("", questions=[]))
    assert status == 2
    assert "the licence was not accepted, so nothing was downloaded. Read it at https://" in output
    assert hub.requested_files() == {"model_index.json"}
    assert {path.name for path in Path().iterdir()} == {".env.example"}


def test_a_licence_that_changed_must_be_accepted_again(hub: FakeHub, run: RunDownload) -> None:
    hub.repos["artist/fox"] = FakeRepo(hub.repos[BASE].files, {"license": "mit"})
    assert run("artist/fox")[0] == 0
    hub.repos["artist/fox"].card = {"license": "other", "license_name": "fox-nc"}
    questions: list[str] = []
    assert run("artist/fox", accept_license=False, ask=person("n", questions=questions))[0] == 2
    assert questions
    assert acceptance_of(Path("models/fox"))["license"] == "mit"


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
def test_other_repositories_have_the_licence_on_their_card(
    hub: FakeHub, run: RunDownload, card: dict[str, object], name: str, url: str, restricted: bool
) -> None:
    hub.repos["artist/fox"] = FakeRepo(hub.repos[BASE].files, card)
    status, output = run("artist/fox")
    assert status == 0, output
    assert name in output
    assert ("In short, it forbids" in output) is restricted
    record = acceptance_of(Path("models/fox"))
    assert (record["license"], record["license_url"]) == (name, url.format(hub=hub.address))
    assert ".env.local has MODEL_CHECKPOINT_DIR=./models/fox now" in output


def test_the_pipeline_class_determines_the_variable(
    hub: FakeHub, run: RunDownload, small_files: dict[Stage, dict[str, bytes]]
) -> None:
    hub.repos["artist/polish"] = FakeRepo(small_files[Stage.REFINER])
    status, output = run("artist/polish")
    assert status == 0, output
    assert ".env.local has MODEL_REFINER_CHECKPOINT_DIR=./models/polish now" in output
    assert output.endswith("A refiner needs a base. Next: aura download sdxl\n")
    hub.repos["artist/other"] = FakeRepo(
        {**small_files[Stage.BASE], "model_index.json": b'{"_class_name": "FluxPipeline"}'}
    )
    status, output = run("artist/other")
    assert status == 2
    assert "artist/other is neither an SDXL base nor a refiner: the class in its " in output
    assert "model_index.json is FluxPipeline, and must be StableDiffusionXLPipeline or" in output
    assert not Path("models/other").exists()


def test_weights_that_are_not_sdxl_are_not_put_into_env_local(
    hub: FakeHub, run: RunDownload
) -> None:
    files = hub.repos[BASE].files
    unet = json.loads(files["unet/config.json"]) | {"in_channels": 9}
    files["unet/config.json"] = json.dumps(unet).encode()
    status, output = run()
    assert status == 2
    assert f"{FOLDER.absolute()} has a unet/config.json whose in_channels must be 4" in output
    assert not Path(".env.local").exists()


def test_a_revision_is_kept_until_another_is_requested(hub: FakeHub, run: RunDownload) -> None:
    repo = hub.repos[BASE]
    assert run()[0] == 0
    assert all(
        f"/resolve/{COMMIT}/" in request.path
        for request in hub.requests
        if "/resolve/" in request.path
    )
    repo.revisions = {"main": LATER, "old": COMMIT}
    assert run()[0] == 0
    assert hub.requests[-1].path.endswith(f"/resolve/{COMMIT}/model_index.json")
    previous = acceptance_of()
    assert run(revision="main")[0] == 0
    assert acceptance_of() == previous | {"revision": LATER}


def test_a_second_run_downloads_only_what_is_damaged(hub: FakeHub, run: RunDownload) -> None:
    assert run()[0] == 0
    file = FOLDER / "unet/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    hub.requests.clear()
    assert run()[0] == 0
    assert hub.requested_files() == {"model_index.json"}
    file.write_bytes(content[:-1] + b"!")
    hub.requests.clear()
    assert run()[0] == 0
    assert file.read_bytes() == content
    assert hub.requested_files() == {"model_index.json", "unet/diffusion_pytorch_model.safetensors"}


def test_a_folder_of_another_repository_is_not_touched(hub: FakeHub, run: RunDownload) -> None:
    for name in ("one/fox", "two/fox"):
        hub.repos[name] = hub.repos[BASE]
    assert run("one/fox")[0] == 0
    status, output = run("two/fox")
    assert status == 2
    assert "models/fox holds one/fox, not two/fox. Choose another folder with --folder" in output
    status, output = run("two/fox", folder=Path("with space"))
    assert status == 2
    assert "can't be written to .env.local" in output


def test_a_variable_in_the_environment_takes_precedence_and_is_reported(
    run: RunDownload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", "/elsewhere")
    status, output = run()
    assert status == 0
    assert "but MODEL_CHECKPOINT_DIR=/elsewhere in the environment takes precedence" in output


def test_without_a_terminal_the_error_names_the_flag(hub: FakeHub) -> None:
    line, environment = download_command(hub, "sdxl")
    done = subprocess.run(
        line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.endswith("then run: aura download sdxl --accept-license\n")
    assert "no terminal to ask on. Read it at https://huggingface.co/stabilityai" in done.stderr
    assert hub.requested_files() == {"model_index.json"}


def test_a_person_at_a_terminal_can_accept(hub: FakeHub) -> None:
    line, environment = download_command(hub, "sdxl", TERM="dumb")
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n")
    done = subprocess.run(line, env=environment, stdin=theirs, capture_output=True, text=True)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "Do you accept? [y/N]" in done.stderr
    assert "Traceback" not in done.stderr
    assert acceptance_of()["revision"] == COMMIT
    assert all(
        request.path.startswith(("/api/models/", f"/{BASE}/", "/cdn/")) for request in hub.requests
    )
    assert inspect(FOLDER, Stage.BASE).name == "sdxl-base"
