"""`aura generate`: the whole command, without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from serve_app.cli.generate import generate
from serve_app.cli.main import commands
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import open_device
from tests.support.checkpoints import perturbed
from tests.support.keys import lora, lora_key
from tests.support.lora_files import lora_file

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
FIELDS = {"prompt": "a red circle on a blue background", "seed": 5, "steps": 6, "imageCount": 1}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_CPU_THREADS", "1")


def record_of(file: Path) -> dict[str, Any]:
    with Image.open(file) as picture:
        record: dict[str, Any] = json.loads(picture.info["aura"])
    return record


def test_the_image_is_the_engines_and_carries_its_request(
    tmp_path: Path, checkpoints: dict[Stage, Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.png"
    assert generate({**FIELDS, "negativePrompt": None}, output) == 0
    printed = capsys.readouterr().err
    assert "demo checkpoint" in printed
    assert "6/6 steps" in printed
    assert "out.png" in printed
    record = record_of(output)
    assert record["request"]["seed"] == 5
    assert record["models"]["refiner"] == "demo-refiner"
    with Image.open(output) as picture:
        assert picture.info["parameters"].startswith("a red circle on a blue background\nSteps: 6")
        pixels = np.asarray(picture)
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)
    spec = ImageSpec(
        prompt="a red circle on a blue background",
        seed=5,
        width=128,
        height=128,
        steps=6,
        guidance=record["request"]["guidanceScale"],
        handoff=0.8,
    )
    (drawn,) = LocalPipeline(list(checkpoints.values()), device, images=1).generate([spec])
    assert np.array_equal(pixels, drawn)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"handoff": 0}, {"refiner"}),
        ({"handoff": 1}, {"base"}),
        # A hand-off behind the last step: the refiner only decodes.
        ({"handoff": 0.8, "steps": 4, "sampler": "dpmpp_2m"}, {"base", "refiner"}),
    ],
)
def test_the_record_names_the_profiles_of_the_stages_that_ran(
    tmp_path: Path, changes: dict[str, object], stages: set[str]
) -> None:
    assert generate({**FIELDS, "steps": 2, **changes}, tmp_path / "out.png") == 0
    profiles = record_of(tmp_path / "out.png")["profiles"]
    assert set(profiles) == stages
    assert all(profiles.values())


@pytest.mark.long
def test_a_model_of_models_file_is_chosen_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = perturbed(demo_folder(Stage.BASE), tmp_path / "tune")
    (tmp_path / "models.yaml").write_text(f"models: {{tune: {{path: {folder.name}, steps: 3}}}}")
    monkeypatch.setenv("MODELS_FILE", str(tmp_path / "models.yaml"))
    fields = {name: FIELDS[name] for name in FIELDS if name != "steps"} | {"model": "tune"}
    assert generate(fields, tmp_path / "tuned.png") == 0
    record = record_of(tmp_path / "tuned.png")
    assert record["models"] == {"base": "tune", "refiner": "demo-refiner"}
    assert (record["request"]["model"], record["request"]["steps"]) == ("tune", 3)
    assert generate({**fields, "model": "demo", "steps": 3}, tmp_path / "plain.png") == 0
    tuned, plain = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("tuned", "plain"))
    assert not np.array_equal(tuned, plain)
    assert generate({**fields, "model": "none"}, tmp_path / "none.png") == 2


@pytest.mark.long
def test_loras_of_models_file_are_active(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoints: dict[Stage, Checkpoint],
) -> None:
    file = lora_file(demo_folder(Stage.BASE), tmp_path / "ink.safetensors")
    (tmp_path / "models.yaml").write_text("loras: {ink: {path: ink.safetensors, weight: 0.5}}")
    monkeypatch.setenv("MODELS_FILE", str(tmp_path / "models.yaml"))
    fields = {**FIELDS, "refine": False}
    assert generate({**fields, "loras": ["ink:0.8"]}, tmp_path / "more.png") == 0
    assert generate({**fields, "loras": ["ink"]}, tmp_path / "less.png") == 0
    assert record_of(tmp_path / "less.png")["request"]["loras"] == [{"name": "ink", "weight": 0.5}]
    record = record_of(tmp_path / "more.png")
    with Image.open(tmp_path / "more.png") as picture:
        assert picture.info["parameters"].startswith(f"{FIELDS['prompt']} <lora:ink:0.8>\nSteps: 6")
        pixels = np.asarray(picture)
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)
    spec = ImageSpec(
        prompt=str(FIELDS["prompt"]),
        seed=5,
        width=128,
        height=128,
        steps=6,
        guidance=record["request"]["guidanceScale"],
        extensions=(lora("ink", 0.8),),
    )
    base, extensions = checkpoints[Stage.BASE], {lora_key("ink"): inspect_lora(file)}
    (drawn,) = LocalPipeline([base], device, images=1, extensions=extensions).generate([spec])
    assert np.array_equal(pixels, drawn)
    assert not np.array_equal(pixels, np.asarray(Image.open(tmp_path / "less.png")))
    for name, sentence in (
        ("ink:much", "--lora ink:much must be name or name:weight"),
        ("ink:", "--lora ink: must be name or name:weight"),
        (":0.5", "--lora :0.5 must be name or name:weight"),
        ("ink:3", "--lora ink:3 must be between -2 and 2, got 3"),
        ("x", "--lora x is unknown. Available: ink"),
    ):
        assert generate({**fields, "loras": [name]}, tmp_path / "none.png") == 2
        assert sentence in capsys.readouterr().err


def test_a_damaged_lora_is_refused_in_one_line_by_its_tensor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = lora_file(demo_folder(Stage.BASE), tmp_path / "ink.safetensors", layers=["conv_in"])
    tensors = load_file(file)
    tensors["lora_unet_conv_in.lora_up.weight"][3] = float("nan")
    save_file(tensors, file)
    (tmp_path / "models.yaml").write_text("loras: {ink: {path: ink.safetensors}}")
    monkeypatch.setenv("MODELS_FILE", str(tmp_path / "models.yaml"))
    assert generate({**FIELDS, "loras": ["ink"]}, tmp_path / "out.png") == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert (
        f"error the LoRA ink ({file}) holds ink.safetensors, whose tensor "
        "lora_unet_conv_in.lora_up.weight is damaged: 4 NaN of 256 values"
    ) in printed
    assert "CPU" not in printed
    assert not [record for record in caplog.records if record.exc_info]


def test_several_images_get_numbers_and_successive_seeds(tmp_path: Path) -> None:
    assert generate({**FIELDS, "imageCount": 2, "refine": False}, tmp_path / "fox.png") == 0
    files = [tmp_path / "fox-1.png", tmp_path / "fox-2.png"]
    records = [record_of(file) for file in files]
    assert [record["request"]["seed"] for record in records] == [5, 6]
    assert set(records[0]["models"]) == {"base"}
    assert not (tmp_path / "fox.png").exists()


def test_a_truncated_prompt_gives_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "a (red:1.2) circle" + " BREAK on white" * 32
    assert generate({**FIELDS, "prompt": prompt, "steps": 2}, tmp_path / "out.png") == 0
    assert capsys.readouterr().err.count("the prompt was cut after 32 chunks") == 1
    assert record_of(tmp_path / "out.png")["request"]["prompt"] == prompt
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.info["parameters"].startswith(prompt + "\n")
    assert generate({**FIELDS, "steps": 2}, tmp_path / "out.png") == 0
    assert "was cut" not in capsys.readouterr().err


def test_a_prompt_of_things_that_the_demo_cannot_draw_gives_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for prompt, number in (("a cat", 1), ("a red heart", 0)):
        assert generate({**FIELDS, "prompt": prompt, "steps": 1}, tmp_path / "out.png") == 0
        warning = " ".join(capsys.readouterr().err.split())
        assert warning.count("the prompt names nothing that the model demo can draw") == number


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"steps": 300},
            "--steps must be between 1 and 150, got 300. See: aura generate --help",
        ),
        ({"width": 100, "height": 128}, "--width must be a multiple of 8"),
        ({"aspectRatio": "7:1"}, "--aspect-ratio must be one of"),
        ({"imageCount": 9}, "--count must be between 1 and 8, got 9"),
        ({"prompt": " "}, "error prompt must not be empty. See: aura generate --help"),
        ({"model": "none"}, "error --model is unknown. Available: demo"),
        ({"loras": ["ink"]}, "error --lora ink is unknown. Available: none"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], sentence: str
) -> None:
    assert generate({**FIELDS, **changes}, tmp_path / "out.png") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_the_command_passes_its_options_on(tmp_path: Path) -> None:
    output = tmp_path / "pair[1].png"
    arguments = ["generate", "a red star", "-o", str(output), "-n", "2", "--steps", "2"]
    done = CliRunner().invoke(
        commands, [*arguments, "--no-refine", "--negative-prompt", "a blue one"]
    )
    assert done.exit_code == 0, done.output
    record = record_of(tmp_path / "pair[1]-2.png")
    assert record["request"]["negativePrompt"] == "a blue one"
    assert record["request"]["refine"] is False


def test_the_settings_of_the_operator_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("circle\n")
    monkeypatch.setenv("SAFETY_WORDS_FILE", str(tmp_path / "words.txt"))
    assert generate(FIELDS, tmp_path / "out.png") == 2
    assert "safety filter refuses" in capsys.readouterr().err
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", str(tmp_path / "sdxl"))
    assert generate(FIELDS, tmp_path / "out.png") == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--steps", "300"], {}),
        (["--model", "none"], {}),
        (["--lora", "none"], {}),
        (["--output", "nowhere/out.png"], {}),
        ([], {"MODEL_PRECISION": "fp8"}),
        ([], {"MODEL_CHECKPOINT_DIR": "/nowhere"}),
        ([], {"SAFETY_WORDS_FILE": "/nowhere"}),
    ],
)
def test_what_can_be_refused_is_refused_before_torch_is_imported(
    arguments: list[str], environment: dict[str, str]
) -> None:
    script = (
        "import sys\nfrom serve_app.cli.main import main\ncode = main(sys.argv[1:])\n"
        "sys.exit('imported' if {'torch', 'ray'} & set(sys.modules) else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "generate", "a star", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error ")


def test_no_ray_is_needed() -> None:
    script = "import sys, serve_app.cli.local_images; sys.exit('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT)
    assert done.returncode == 0


def test_a_guidance_interval_and_a_step_cache_are_options(tmp_path: Path) -> None:
    options = {"guidanceInterval": "0.28:5.42", "cache": "deepcache"}
    assert generate({**FIELDS, **options}, tmp_path / "out.png") == 0
    request = record_of(tmp_path / "out.png")["request"]
    assert (request["guidanceInterval"], request["cache"]) == ([0.28, 5.42], "deepcache")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("low:high", "must be low:high, as in 0.28:5.42"),
        ("3", "must have at least 2 entries"),
        ("5:3", "must be two noise levels, the lower one first, got 5 and 3"),
        ("-1:3", "must be between 0 and 10000, got -1"),
    ],
)
def test_a_guidance_interval_that_is_none_is_refused(
    text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate({**FIELDS, "guidanceInterval": text}, tmp_path / "none.png") == 2
    assert f"error --guidance-interval {sentence}" in capsys.readouterr().err
