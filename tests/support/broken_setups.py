"""Broken set-ups: each function breaks one and returns all findings that doctor must have."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.checkpoints import change_tensors
from tests.support.lora_files import lora_file
from tests.support.setups import SetUp
from tests.support.single_files import to_single_file

UNET = "unet/diffusion_pytorch_model.safetensors"
Problem = tuple[str, str, str, str]  # check, verdict, message and fix
SLOW: Problem = (
    "device",
    "WARN",
    "the CPU, because torch sees no GPU: SDXL will be slow without a GPU of 12 GB or more, and "
    "faster with fewer steps and smaller images",
    'aura generate "a fox" --steps 12',
)
NO_TOKEN: Problem = (
    "hub",
    "WARN",
    "no Hugging Face token is stored: a gated repository answers 403 until you accept its terms on "
    "its page and log in",
    "hf auth login",
)


Break = Callable[[SetUp], list[Problem]]
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


def misspelt(setup: SetUp) -> list[Problem]:
    setup.set(MODEL_PRECISON="fp16")
    message = "MODEL_PRECISON is not a setting of this service; did you mean MODEL_PRECISION?"
    return [
        ("settings", "FAIL", message, "sed -i.bak 's/MODEL_PRECISON=/MODEL_PRECISION=/' .env.local")
    ]


def misspelt_and_exported(setup: SetUp) -> list[Problem]:
    setup.export(MODEL_DEVISE="cpu")
    message = "MODEL_DEVISE is not a setting of this service; did you mean MODEL_DEVICE?"
    return [
        ("settings", "FAIL", message, 'export MODEL_DEVICE="$MODEL_DEVISE"; unset MODEL_DEVISE')
    ]


def illegal_value(setup: SetUp) -> list[Problem]:
    setup.set(MODEL_PRECISION="fp8")
    message = "MODEL_PRECISION=fp8 must be 'fp32', 'fp16', 'bf16' or 'auto'"
    return [("settings", "FAIL", message, "MODEL_PRECISION=")]


def every_origin(setup: SetUp) -> list[Problem]:
    setup.export(ALLOWED_ORIGINS="*")
    message = "ALLOWED_ORIGINS=* must name the origins that may call: * would let every web page in"
    return [("settings", "FAIL", message, "unset ALLOWED_ORIGINS")]


def settings_in_utf_16(setup: SetUp) -> list[Problem]:
    (setup.folder / ".env.local").write_text("MODEL_DEVICE=cpu\r\n", encoding="utf-16")
    message = ".env.local is not UTF-8 text (invalid start byte): PowerShell's > writes UTF-16"
    fix = "iconv -f UTF-16 -t UTF-8 .env.local > .env.local.utf8 && mv .env.local.utf8 .env.local"
    return [("settings", "FAIL", message, fix)]


def misspelt_key_in_the_config(setup: SetUp) -> list[Problem]:
    setup.edit_config("base: { min_replicas", "base: { min_replica")
    message = (
        "serve_config.yaml: applications[0].args.base.min_replica: unknown key. Did you mean "
        "min_replicas?"
    )
    return [("config", "FAIL", message, '"${EDITOR:-vi}" serve_config.yaml')]


def no_config(setup: SetUp) -> list[Problem]:
    (setup.folder / "serve_config.yaml").unlink()
    setup.export(BACKEND_PORT=setup.port)
    message = (
        "serve_config.yaml does not exist: run this in the folder that has it, or name another"
    )
    return [("config", "FAIL", message, "aura doctor --config PATH")]


def base_url_with_another_port(setup: SetUp) -> list[Problem]:
    setup.export(IMAGE_SERVICE_BASE_URL="http://localhost:3999")
    message = (
        f"IMAGE_SERVICE_BASE_URL=http://localhost:3999, but the service listens on port "
        f"{setup.port}: a frontend that uses this URL gets no answer"
    )
    fix = f"export IMAGE_SERVICE_BASE_URL=http://localhost:{setup.port}"
    return [("address", "WARN", message, fix)]


def metrics_on_the_port_of_the_service(setup: SetUp) -> list[Problem]:
    setup.export(METRICS_PORT=setup.port)
    message = f"METRICS_PORT={setup.port} can't be used (it is the port of the service)"
    return [("metrics port", "FAIL", message, f"METRICS_PORT={setup.port + 1} aura up")]


def metrics_on_a_port_that_ray_takes(setup: SetUp) -> list[Problem]:
    setup.export(METRICS_PORT=52365)
    other = max(52365, setup.port) + 1
    message = "METRICS_PORT=52365 can't be used (Ray's dashboard agent takes it)"
    return [("metrics port", "FAIL", message, f"METRICS_PORT={other} aura up")]


def metrics_on_a_port_that_is_none(setup: SetUp) -> list[Problem]:
    setup.set(METRICS_PORT=65536)
    message = "METRICS_PORT=65536 must be at most 65535"
    return [("settings", "FAIL", message, "METRICS_PORT=")]


def service_on_a_port_that_ray_takes(setup: SetUp) -> list[Problem]:
    setup.set(BACKEND_PORT=8265, MODEL_CHECKPOINT_DIR="")
    base = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo model draws plain shapes, in spite of the "
        "settings in .env.local"
    )
    message = "BACKEND_PORT=8265 can't be used (Ray's dashboard takes it)"
    return [
        ("base", "WARN", base, "aura download"),
        ("port", "FAIL", message, "BACKEND_PORT=8266 aura up"),
    ]


def host_of_another_machine(setup: SetUp) -> list[Problem]:
    setup.export(HOST="203.0.113.7", API_KEYS="k" * 24)
    message = "HOST=203.0.113.7 is not an address of this machine"
    return [("port", "FAIL", message, "export HOST=127.0.0.1")]


def vite_on_the_same_port(setup: SetUp) -> list[Problem]:
    setup.export(VITE_PORT=setup.port)
    message = (
        f"VITE_PORT={setup.port} is the port of this service: the frontend's development server "
        "needs another one"
    )
    return [("origins", "FAIL", message, "export VITE_PORT=5173")]


def no_ray_at_ray_address(setup: SetUp) -> list[Problem]:
    setup.export(RAY_ADDRESS=f"127.0.0.1:{setup.port}")
    message = f"RAY_ADDRESS=127.0.0.1:{setup.port}, but no Ray responds at this address"
    return [("ray", "FAIL", message, "unset RAY_ADDRESS")]


def ray_without_tokens(setup: SetUp) -> list[Problem]:
    setup.export(RAY_AUTH_MODE="disabled")
    message = (
        "RAY_AUTH_MODE=disabled: anyone who reaches the ports of the service's own Ray can run "
        "code on this machine"
    )
    return [("ray ports", "WARN", message, "unset RAY_AUTH_MODE")]


def ledger_is_a_folder(setup: SetUp) -> list[Problem]:
    setup.export(LEDGER_FILE=setup.folder)
    message = f"{setup.folder} is a folder, and must be a file"
    return [("ledger", "FAIL", message, "unset LEDGER_FILE")]


def ledger_under_a_file(setup: SetUp) -> list[Problem]:
    setup.export(LEDGER_FILE=setup.folder / "serve_config.yaml/ledger.sqlite")
    file = setup.folder / "serve_config.yaml"
    message = f"{file}/ledger.sqlite can't be created: {file} is not a folder"
    return [("ledger", "FAIL", message, "unset LEDGER_FILE")]


def ledger_is_something_else(setup: SetUp) -> list[Problem]:
    (setup.folder / "notes.txt").write_text("milk, bread and sixteen eggs")
    setup.export(LEDGER_FILE=setup.folder / "notes.txt")
    file = setup.folder / "notes.txt"
    message = f"{file} is not a ledger: it is not an SQLite database"
    return [("ledger", "FAIL", message, f"mv {file} {file}.other")]


def no_word_list(setup: SetUp) -> list[Problem]:
    setup.export(SAFETY_WORDS_FILE=setup.folder / "words.txt")
    file = setup.folder / "words.txt"
    message = f"SAFETY_WORDS_FILE={file} can't be read: No such file or directory"
    return [("filters", "FAIL", message, "unset SAFETY_WORDS_FILE")]


def no_checker(setup: SetUp) -> list[Problem]:
    checker = setup.folder / "checker"
    setup.export(SAFETY_CHECKER_DIR=checker)
    message = f"SAFETY_CHECKER_DIR={checker} lacks config.json"
    fix = f"hf download CompVis/stable-diffusion-safety-checker --local-dir {checker}"
    return [("filters", "FAIL", message, fix)]


def half_precision_on_the_cpu(setup: SetUp) -> list[Problem]:
    setup.export(MODEL_PRECISION="fp16")
    message = (
        "MODEL_PRECISION=fp16 on the CPU, where convolutions are many times slower than in fp32"
    )
    return [("precision", "WARN", message, "export MODEL_PRECISION=fp32")]


def cuda_without_a_gpu(setup: SetUp) -> list[Problem]:
    setup.set(MODEL_DEVICE="cuda")
    (setup.folder / ".env.local").rename(setup.folder / ".env")
    base = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo model draws plain shapes, in spite of the "
        "settings in .env"
    )
    message = "MODEL_DEVICE=cuda, but torch sees no GPU"
    return [
        ("base", "WARN", base, "aura download"),
        ("device", "FAIL", message, "MODEL_DEVICE=auto"),
    ]


def public_host_without_a_key(setup: SetUp) -> list[Problem]:
    setup.edit_config("host: 127.0.0.1", "host: 0.0.0.0")
    message = "host 0.0.0.0 of the serve config lets other machines in, and API_KEYS is empty"
    return [("keys", "FAIL", message, NEW_KEY)]


def short_keys(setup: SetUp) -> list[Problem]:
    setup.export(API_KEYS="secret")
    message = "1 of 1 API_KEYS can be guessed: they have fewer than 16 characters"
    return [("keys", "WARN", message, f"unset API_KEYS; {NEW_KEY}")]


NEW_KEY = (
    "python -c \"import secrets; print('\\nAPI_KEYS=' + secrets.token_urlsafe(24))\" >> .env.local"
)
BROKEN: list[Break] = [
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
    unknown_key_of_a_model,
    listed_model_that_does_not_exist,
    listed_file_without_configs,
    no_models_file,
    lora_for_another_model,
    lora_for_an_old_model,
    lora_with_nan,
    licence_of_a_listed_model_not_accepted,
    licence_of_a_lora_unknown,
    misspelt,
    misspelt_and_exported,
    illegal_value,
    every_origin,
    settings_in_utf_16,
    misspelt_key_in_the_config,
    no_config,
    base_url_with_another_port,
    metrics_on_the_port_of_the_service,
    metrics_on_a_port_that_ray_takes,
    metrics_on_a_port_that_is_none,
    service_on_a_port_that_ray_takes,
    host_of_another_machine,
    vite_on_the_same_port,
    no_ray_at_ray_address,
    ray_without_tokens,
    ledger_is_a_folder,
    ledger_under_a_file,
    ledger_is_something_else,
    no_word_list,
    no_checker,
    half_precision_on_the_cpu,
    cuda_without_a_gpu,
    public_host_without_a_key,
    short_keys,
]
FIXED_AT_ONCE: list[Break] = [
    wrong_path_beside_the_right_one,
    misspelt_folders,
    unset_beside_weights,
    refiner_with_another_noise_schedule,
    single_file_beside_a_folder_with_configs,
    no_models_file,
    misspelt,
    misspelt_and_exported,
    illegal_value,
    every_origin,
    settings_in_utf_16,
    base_url_with_another_port,
    vite_on_the_same_port,
    no_ray_at_ray_address,
    ray_without_tokens,
    ledger_is_a_folder,
    ledger_is_something_else,
    no_word_list,
    half_precision_on_the_cpu,
    cuda_without_a_gpu,
    public_host_without_a_key,
    short_keys,
]
