"""Set-ups with a broken MODELS_FILE, or a model or a LoRA of it that is broken."""

import shutil

import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.lora_files import lora_file
from tests.support.setup_problems import Break, Problem
from tests.support.setups import SetUp
from tests.support.single_files import to_single_file


def unknown_key_of_a_model(setup: SetUp) -> list[Problem]:
    file = setup.list_models("{fox: {path: fox, stepz: 4}}")
    message = f"MODELS_FILE={file}: models.fox.stepz is unknown"
    return [("models file", "FAIL", message, f'"${{EDITOR:-vi}}" {file}')]


def listed_model_that_does_not_exist(setup: SetUp) -> list[Problem]:
    file = setup.list_models("{fox: {path: tunes/fox}}")
    message = f"MODELS_FILE={file}: models.fox.path={setup.folder}/tunes/fox does not exist"
    return [("models file", "FAIL", message, f'"${{EDITOR:-vi}}" {file}')]


def listed_file_without_configs(setup: SetUp) -> list[Problem]:
    fox = to_single_file(demo_folder(Stage.BASE), setup.folder / "fox.safetensors")
    file = setup.list_models("{fox: {path: fox.safetensors}}")
    message = (
        f"MODELS_FILE={file}: models.fox.path={fox} is a single file, which lacks configs and "
        "tokenizers"
    )
    return [("models file", "FAIL", message, "aura download sdxl")]


def lora_for_another_model(setup: SetUp) -> list[Problem]:
    ink = setup.folder / "ink.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(4, 8)}, ink)
    file = setup.list_models(loras="{ink: {path: ink.safetensors}}")
    message = (
        f"MODELS_FILE={file}: loras.ink.path={ink} is a LoRA for a diffusion transformer; only "
        "LoRAs for SDXL fit"
    )
    return [("models file", "FAIL", message, f'"${{EDITOR:-vi}}" {file}')]


def lora_for_an_old_model(setup: SetUp) -> list[Problem]:
    ink, layer = setup.folder / "ink.safetensors", "lora_unet_mid_block_attentions_0_proj_in"
    save_file(
        {f"{layer}.lora_{part}.weight": torch.zeros(4, 4) for part in ("down", "up")},
        ink,
        {"ss_base_model_version": "sd_v1"},
    )
    file = setup.list_models(loras="{ink: {path: ink.safetensors}}")
    message = (
        f"MODELS_FILE={file}: loras.ink.path={ink} does not fit demo: layers of another size: 1 of "
        f"1 ({layer}: 4 x 4, there 96 x 96). Its metadata names sd_v1"
    )
    return [("models file", "FAIL", message, f'"${{EDITOR:-vi}}" {file}')]


def lora_with_nan(setup: SetUp) -> list[Problem]:
    ink = lora_file(demo_folder(Stage.BASE), setup.folder / "ink.safetensors", networks=["unet"])
    tensors = load_file(ink)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, ink)
    file = setup.list_models(loras="{ink: {path: ink.safetensors, license: MIT}}")
    message = (
        f"the LoRA ink: {ink} holds ink.safetensors, whose tensor {name} is damaged: 1 NaN of "
        f"{tensors[name].numel()} values"
    )
    return [("extensions", "FAIL", message, f'"${{EDITOR:-vi}}" {file}')]


def licence_of_a_lora_unknown(setup: SetUp) -> list[Problem]:
    lora_file(demo_folder(Stage.BASE), setup.folder / "ink.safetensors", networks=["unet"])
    file = setup.list_models(loras="{ink: {path: ink.safetensors}}")
    message = (
        "the licence of the LoRA ink is unknown: look it up where the file came from, then state "
        "it as `license` of the LoRA"
    )
    return [("licence", "WARN", message, f'"${{EDITOR:-vi}}" {file}')]


def no_models_file(setup: SetUp) -> list[Problem]:
    file = setup.folder / "models.yaml"
    setup.export(MODELS_FILE=file)
    message = f"MODELS_FILE={file} can't be read: No such file or directory"
    return [("models file", "FAIL", message, "unset MODELS_FILE")]


def licence_of_a_listed_model_not_accepted(setup: SetUp) -> list[Problem]:
    shutil.copytree(demo_folder(Stage.BASE), setup.folder / "fox")
    for name in ("LICENSE", "README.md"):
        (setup.folder / "fox" / name).unlink()
    file = setup.list_models("{fox: {path: fox}}")
    message = (
        "fox is under CreativeML Open RAIL++-M (assumed: its folder does not say), and its folder "
        "has no record that somebody accepted that (acceptance.json): read the licence, then state "
        "it as `license` of the model"
    )
    return [("licence", "WARN", message, f'"${{EDITOR:-vi}}" {file}')]


BROKEN_MODEL_LISTS: list[Break] = [
    unknown_key_of_a_model,
    listed_model_that_does_not_exist,
    listed_file_without_configs,
    no_models_file,
    lora_for_another_model,
    lora_for_an_old_model,
    lora_with_nan,
    licence_of_a_listed_model_not_accepted,
    licence_of_a_lora_unknown,
]
FIXED_MODEL_LISTS: list[Break] = [
    no_models_file,
]
