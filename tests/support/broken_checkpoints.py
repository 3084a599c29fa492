"""Set-ups with a broken checkpoint: each function breaks one and returns all findings."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.checkpoints import change_tensors
from tests.support.setup_problems import NO_TOKEN, SLOW, Break, Problem
from tests.support.setups import SetUp
from tests.support.single_files import to_single_file

UNET = "unet/diffusion_pytorch_model.safetensors"
FETCH = "aura download artist/fox"


def wrong_path(setup: SetUp) -> list[Problem]:
    setup.set(MODEL_CHECKPOINT_DIR="./models/sdxl-bse")
    message = f"MODEL_CHECKPOINT_DIR={setup.folder}/models/sdxl-bse does not exist"
    return [("base", "FAIL", message, "aura download sdxl"), NO_TOKEN, SLOW]


def wrong_path_beside_the_right_one(setup: SetUp) -> list[Problem]:
    setup.weights()
    setup.set(MODEL_CHECKPOINT_DIR="./models/base")
    message = f"MODEL_CHECKPOINT_DIR={setup.folder}/models/base does not exist"
    return [("base", "FAIL", message, "MODEL_CHECKPOINT_DIR=./models/sdxl-base"), NO_TOKEN, SLOW]


def misspelt_folders(setup: SetUp) -> list[Problem]:
    setup.weights(name="tunes/fox-v2")
    setup.set(MODEL_CHECKPOINT_DIR="./tune/foxv2")
    message = f"MODEL_CHECKPOINT_DIR={setup.folder}/tune/foxv2 does not exist"
    return [("base", "FAIL", message, "MODEL_CHECKPOINT_DIR=./tunes/fox-v2"), NO_TOKEN, SLOW]


def repository_in_place_of_a_path(setup: SetUp) -> list[Problem]:
    setup.weights()
    setup.set(MODEL_CHECKPOINT_DIR="artist/fox")
    message = f"MODEL_CHECKPOINT_DIR={setup.folder}/artist/fox does not exist"
    return [("base", "FAIL", message, FETCH), NO_TOKEN, SLOW]


def fine_tune_of_unknown_origin(setup: SetUp) -> list[Problem]:
    folder = setup.weights(name="tunes/fox")
    (folder / "acceptance.json").unlink()
    (folder / UNET).unlink()
    message = (
        f"MODEL_CHECKPOINT_DIR={folder} lacks the weights of unet, "
        "diffusion_pytorch_model.safetensors"
    )
    return [("base", "FAIL", message, "aura download OWNER/NAME"), NO_TOKEN, SLOW]


def damaged(setup: SetUp, damage: Callable[[Path], object], problem: str) -> list[Problem]:
    folder = setup.weights()
    damage(folder)
    message = f"MODEL_CHECKPOINT_DIR={folder} {problem}"
    return [("base", "FAIL", message, FETCH), NO_TOKEN, SLOW]


def pickle_weights(setup: SetUp) -> list[Problem]:
    return damaged(
        setup,
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".bin")),
        "holds a pickle in unet, where only safetensors are loaded",
    )


def truncated(setup: SetUp) -> list[Problem]:
    size = (demo_folder(Stage.BASE) / UNET).stat().st_size
    problem = f"holds a truncated {UNET}: 100000 of {size} bytes"
    return damaged(setup, lambda f: os.truncate(f / UNET, 100_000), problem)


def web_page(setup: SetUp) -> list[Problem]:
    page = "<!DOCTYPE html><title>Access to this model is restricted</title>"
    return damaged(
        setup,
        lambda f: (f / UNET).write_text(page),
        f"holds {UNET}, which is no safetensors file inside: it is a web page, as sites send it "
        "to visitors without access to the file",
    )


def lfs_pointer(setup: SetUp) -> list[Problem]:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5135149760\n"
    return damaged(
        setup,
        lambda f: (f / UNET).write_text(pointer),
        f"holds {UNET}, which is no safetensors file inside: it is a Git LFS pointer, because "
        "the clone did not download the weights",
    )


def a_tensor_too_few(setup: SetUp) -> list[Problem]:
    file = "text_encoder_2/model.safetensors"
    return damaged(
        setup,
        lambda f: change_tensors(f / file, without="text_projection.weight"),
        f"holds {file} without 1 tensor that text_encoder_2/config.json asks for "
        "(text_projection.weight)",
    )


def moving_averages_alone(setup: SetUp) -> list[Problem]:
    return damaged(
        setup,
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".non_ema.safetensors")),
        "lacks the weights of unet, diffusion_pytorch_model.safetensors: it holds only "
        "diffusion_pytorch_model.non_ema.safetensors",
    )


def no_unet(setup: SetUp) -> list[Problem]:
    return damaged(setup, lambda f: shutil.rmtree(f / "unet"), "lacks its folder unet")


def refiner_as_base(setup: SetUp) -> list[Problem]:
    folder = setup.weights(Stage.REFINER, "models/mine")
    (setup.folder / ".env.local").write_text("MODEL_CHECKPOINT_DIR=./models/mine\n")
    message = f"MODEL_CHECKPOINT_DIR={folder} lacks text_encoder in model_index.json"
    return [("base", "FAIL", message, FETCH), NO_TOKEN, SLOW]


def refiner_alone(setup: SetUp) -> list[Problem]:
    folder = setup.weights(Stage.REFINER, "models/sdxl-refiner")
    message = f"MODEL_REFINER_CHECKPOINT_DIR={folder} is set without MODEL_CHECKPOINT_DIR"
    return [("base", "FAIL", message, "aura download sdxl"), NO_TOKEN]


def refiner_with_another_noise_schedule(setup: SetUp) -> list[Problem]:
    base, refiner = setup.weights(), setup.weights(Stage.REFINER, "models/sdxl-refiner")
    config = refiner / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.02}))
    message = (
        f"MODEL_REFINER_CHECKPOINT_DIR={refiner} can't continue images of "
        f"MODEL_CHECKPOINT_DIR={base}: they differ in noise schedule or native size"
    )
    return [("refiner", "FAIL", message, "MODEL_REFINER_CHECKPOINT_DIR="), NO_TOKEN, SLOW]


def unset(setup: SetUp) -> list[Problem]:
    setup.set(IMAGE_SERVICE_BASE_URL=f"http://localhost:{setup.port}", MODEL_CHECKPOINT_DIR="")
    message = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo model draws plain shapes, in spite of the "
        "settings in .env.local"
    )
    return [("base", "WARN", message, "aura download")]


def unset_beside_weights(setup: SetUp) -> list[Problem]:
    setup.weights()
    (setup.folder / ".env.local").unlink()
    message = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo model draws plain shapes, but a complete "
        "SDXL is on this disk"
    )
    return [("base", "WARN", message, "MODEL_CHECKPOINT_DIR=./models/sdxl-base")]


def half_downloaded(setup: SetUp) -> list[Problem]:
    parts = setup.folder / "models/sdxl-base/.parts"
    parts.mkdir(parents=True)
    (parts / "lock").touch()
    with (parts / "83e012a8").open("wb") as part:
        part.truncate(3 * 2**30)  # sparse: no disk is filled
    message = f"{setup.folder}/models/sdxl-base holds 3.0 GiB of an interrupted download"
    return [("download", "WARN", message, "aura download sdxl"), NO_TOKEN]


def half_downloaded_by_huggingface_hub(setup: SetUp) -> list[Problem]:
    folder = setup.folder / "elsewhere/sdxl-base"
    parts = folder / ".cache/huggingface/download/unet"
    parts.mkdir(parents=True)
    with (parts / "x.83e012a8.incomplete").open("wb") as part:
        part.truncate(2**30)
    setup.set(MODEL_CHECKPOINT_DIR="elsewhere/sdxl-base")
    fetch = f"aura download sdxl --folder {setup.folder}/elsewhere"
    return [
        ("base", "FAIL", f"MODEL_CHECKPOINT_DIR={folder} lacks model_index.json", fetch),
        ("download", "WARN", f"{folder} holds 1.0 GiB of an interrupted download", fetch),
        NO_TOKEN,
        SLOW,
    ]


def licence_not_accepted(setup: SetUp) -> list[Problem]:
    folder = setup.weights()
    for name in ("acceptance.json", "LICENSE", "README.md"):
        (folder / name).unlink()
    message = (
        "sdxl-base is under CreativeML Open RAIL++-M (assumed: its folder does not say), and its "
        "folder has no record that somebody accepted that (acceptance.json): read the licence, "
        "then accept it"
    )
    return [("licence", "WARN", message, "aura download sdxl"), SLOW]


def single_file_without_configs(setup: SetUp) -> list[Problem]:
    file = to_single_file(demo_folder(Stage.BASE), setup.folder / "fox.safetensors")
    setup.set(MODEL_CHECKPOINT_DIR="./fox.safetensors")
    message = f"MODEL_CHECKPOINT_DIR={file} is a single file, which lacks configs and tokenizers"
    return [("base", "FAIL", message, "aura download sdxl"), NO_TOKEN, SLOW]


def single_file_beside_a_folder_with_configs(setup: SetUp) -> list[Problem]:
    setup.weights()
    (_, verdict, message, _), *others = single_file_without_configs(setup)
    return [("base", verdict, message, "MODEL_CONFIG_DIR=./models/sdxl-base"), *others]


def file_that_is_not_a_checkpoint(setup: SetUp) -> list[Problem]:
    (setup.folder / "fox.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>")
    setup.set(MODEL_CHECKPOINT_DIR="./fox.safetensors")
    message = (
        f"MODEL_CHECKPOINT_DIR={setup.folder}/fox.safetensors holds fox.safetensors, which is no "
        "safetensors file inside: it is a web page, as sites send it to visitors without "
        "access to the file"
    )
    return [("base", "FAIL", message, "aura download sdxl"), NO_TOKEN, SLOW]


BROKEN_CHECKPOINTS: list[Break] = [
    wrong_path,
    wrong_path_beside_the_right_one,
    misspelt_folders,
    repository_in_place_of_a_path,
    fine_tune_of_unknown_origin,
    pickle_weights,
    truncated,
    web_page,
    lfs_pointer,
    a_tensor_too_few,
    moving_averages_alone,
    no_unet,
    refiner_as_base,
    refiner_alone,
    refiner_with_another_noise_schedule,
    unset,
    unset_beside_weights,
    half_downloaded,
    half_downloaded_by_huggingface_hub,
    licence_not_accepted,
    single_file_without_configs,
    single_file_beside_a_folder_with_configs,
    file_that_is_not_a_checkpoint,
]
FIXED_CHECKPOINTS: list[Break] = [
    wrong_path_beside_the_right_one,
    misspelt_folders,
    unset_beside_weights,
    refiner_with_another_noise_schedule,
    single_file_beside_a_folder_with_configs,
]
