"""Set-ups that are really broken: each breaks one, and gives all that must be found wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.lora_files import lora_file
from tests.support.setups import SetUp
from tests.support.single_files import to_single_file

UNET = "unet/diffusion_pytorch_model.safetensors"
Found = tuple[str, str, str, str]
SLOW: Found = (
    "device",
    "WARN",
    "the CPU, since no GPU is seen: SDXL pictures will be slow; smaller ones with fewer steps are "
    "quicker, a GPU of 12 GB or more is the cure",
    'aura generate "a fox" --steps 12',
)
NO_TOKEN: Found = (
    "hub",
    "WARN",
    "no Hugging Face token is here: a gated repository answers 403 until its terms are accepted "
    "on its page and you are logged in",
    "hf auth login",
)


Break = Callable[[SetUp], list[Found]]
FETCH = "aura download artist/fox"


def wrong_path(setup: SetUp) -> list[Found]:
    setup.set(MODEL_CHECKPOINT_DIR="./models/sdxl-bse")
    said = f"MODEL_CHECKPOINT_DIR={setup.folder}/models/sdxl-bse does not exist"
    return [("base", "FAIL", said, "aura download sdxl"), NO_TOKEN, SLOW]


def wrong_path_beside_the_right_one(setup: SetUp) -> list[Found]:
    setup.weights()
    setup.set(MODEL_CHECKPOINT_DIR="./models/base")
    said = f"MODEL_CHECKPOINT_DIR={setup.folder}/models/base does not exist"
    return [("base", "FAIL", said, "MODEL_CHECKPOINT_DIR=./models/sdxl-base"), NO_TOKEN, SLOW]


def damaged(setup: SetUp, damage: Callable[[Path], object], problem: str) -> list[Found]:
    folder = setup.weights()
    damage(folder)
    said = f"MODEL_CHECKPOINT_DIR={folder} {problem}"
    return [("base", "FAIL", said, FETCH), NO_TOKEN, SLOW]


def pickle_weights(setup: SetUp) -> list[Found]:
    return damaged(
        setup,
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".bin")),
        "holds a pickle in unet, where only safetensors are loaded",
    )


def truncated(setup: SetUp) -> list[Found]:
    return damaged(setup, lambda f: os.truncate(f / UNET, 100_000), f"holds a truncated {UNET}")


def web_page(setup: SetUp) -> list[Found]:
    page = "<!DOCTYPE html><title>Access to this model is restricted</title>"
    return damaged(
        setup,
        lambda f: (f / UNET).write_text(page),
        f"holds {UNET}, which is no safetensors file inside: it is a web page, as a site sends it "
        "with a 403 to who may not have the file",
    )


def lfs_pointer(setup: SetUp) -> list[Found]:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5135149760\n"
    return damaged(
        setup,
        lambda f: (f / UNET).write_text(pointer),
        f"holds {UNET}, which is no safetensors file inside: it is a Git LFS pointer, since the "
        "clone fetched no weights",
    )


def no_unet(setup: SetUp) -> list[Found]:
    return damaged(setup, lambda f: shutil.rmtree(f / "unet"), "lacks its folder unet")


def refiner_in_the_place_of_the_base(setup: SetUp) -> list[Found]:
    folder = setup.weights(Stage.REFINER, "models/mine")
    (setup.folder / ".env.local").write_text("MODEL_CHECKPOINT_DIR=./models/mine\n")
    said = f"MODEL_CHECKPOINT_DIR={folder} lacks text_encoder in model_index.json"
    return [("base", "FAIL", said, FETCH), NO_TOKEN, SLOW]


def refiner_alone(setup: SetUp) -> list[Found]:
    folder = setup.weights(Stage.REFINER, "models/sdxl-refiner")
    said = f"MODEL_REFINER_CHECKPOINT_DIR={folder} is set without MODEL_CHECKPOINT_DIR"
    return [("base", "FAIL", said, "aura download sdxl"), NO_TOKEN]


def refiner_of_another_noise(setup: SetUp) -> list[Found]:
    base, refiner = setup.weights(), setup.weights(Stage.REFINER, "models/sdxl-refiner")
    config = refiner / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.02}))
    said = (
        f"MODEL_REFINER_CHECKPOINT_DIR={refiner} can't continue images of "
        f"MODEL_CHECKPOINT_DIR={base}: they differ in noise schedule or native size. Unset "
        "MODEL_REFINER_CHECKPOINT_DIR, or choose the refiner made for this base"
    )
    return [("refiner", "FAIL", said, "MODEL_REFINER_CHECKPOINT_DIR="), NO_TOKEN, SLOW]


def unset(setup: SetUp) -> list[Found]:
    setup.set(IMAGE_SERVICE_BASE_URL=f"http://localhost:{setup.port}", MODEL_CHECKPOINT_DIR="")
    said = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo draws plain shapes, whatever else stands in "
        ".env.local"
    )
    return [("base", "WARN", said, "aura download")]


def unset_beside_weights(setup: SetUp) -> list[Found]:
    setup.weights()
    (setup.folder / ".env.local").unlink()
    said = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo draws plain shapes, though a whole SDXL "
        "lies here"
    )
    return [("base", "WARN", said, "MODEL_CHECKPOINT_DIR=./models/sdxl-base")]


def half_downloaded(setup: SetUp) -> list[Found]:
    parts = setup.folder / "models/sdxl-base/.parts"
    parts.mkdir(parents=True)
    (parts / "lock").touch()
    with (parts / "83e012a8").open("wb") as part:
        part.truncate(3 * 2**30)  # sparse: no disk is filled
    said = f"{setup.folder}/models/sdxl-base holds 3.0 GiB of a download that did not end"
    return [("download", "WARN", said, "aura download sdxl"), NO_TOKEN]


def half_downloaded_by_the_hub_s_own_tool(setup: SetUp) -> list[Found]:
    folder = setup.folder / "elsewhere/sdxl-base"
    parts = folder / ".cache/huggingface/download/unet"
    parts.mkdir(parents=True)
    with (parts / "x.83e012a8.incomplete").open("wb") as part:
        part.truncate(2**30)
    setup.set(MODEL_CHECKPOINT_DIR="elsewhere/sdxl-base")
    fetch = f"aura download sdxl --folder {setup.folder}/elsewhere"
    return [
        ("base", "FAIL", f"MODEL_CHECKPOINT_DIR={folder} lacks model_index.json", fetch),
        ("download", "WARN", f"{folder} holds 1.0 GiB of a download that did not end", fetch),
        NO_TOKEN,
        SLOW,
    ]


def terms_not_accepted(setup: SetUp) -> list[Found]:
    folder = setup.weights()
    for name in ("acceptance.json", "LICENSE", "README.md"):
        (folder / name).unlink()
    said = (
        "sdxl-base is under CreativeML Open RAIL++-M (assumed: its folder does not say), and no "
        "acceptance of it lies beside its weights (acceptance.json): read it, accept it"
    )
    return [("licence", "WARN", said, "aura download sdxl"), SLOW]


def single_file_without_configs(setup: SetUp) -> list[Found]:
    file = to_single_file(demo_folder(Stage.BASE), setup.folder / "fox.safetensors")
    setup.set(MODEL_CHECKPOINT_DIR="./fox.safetensors")
    said = f"MODEL_CHECKPOINT_DIR={file} is a single file, which lacks configs and tokenizers"
    return [("base", "FAIL", said, "aura download sdxl"), NO_TOKEN, SLOW]


def single_file_beside_a_folder_with_configs(setup: SetUp) -> list[Found]:
    setup.weights()
    (_, verdict, said, _), *others = single_file_without_configs(setup)
    return [("base", verdict, said, "MODEL_CONFIG_DIR=./models/sdxl-base"), *others]


def file_that_is_no_checkpoint(setup: SetUp) -> list[Found]:
    (setup.folder / "fox.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>")
    setup.set(MODEL_CHECKPOINT_DIR="./fox.safetensors")
    said = (
        f"MODEL_CHECKPOINT_DIR={setup.folder}/fox.safetensors holds fox.safetensors, which is no "
        "safetensors file inside: it is a web page, as a site sends it with a 403 to who may not "
        "have the file"
    )
    return [("base", "FAIL", said, "aura download sdxl"), NO_TOKEN, SLOW]


def unknown_key_of_a_model(setup: SetUp) -> list[Found]:
    file = setup.listing("{fox: {path: fox, stepz: 4}}")
    said = f"MODELS_FILE={file}: models.fox.stepz: Extra inputs are not permitted"
    return [("models file", "FAIL", said, f'"${{EDITOR:-vi}}" {file}')]


def model_that_is_not_there(setup: SetUp) -> list[Found]:
    file = setup.listing("{fox: {path: tunes/fox}}")
    said = f"MODELS_FILE={file}: models.fox.path={setup.folder}/tunes/fox does not exist"
    return [("models file", "FAIL", said, f'"${{EDITOR:-vi}}" {file}')]


def listed_file_without_configs(setup: SetUp) -> list[Found]:
    fox = to_single_file(demo_folder(Stage.BASE), setup.folder / "fox.safetensors")
    file = setup.listing("{fox: {path: fox.safetensors}}")
    said = (
        f"MODELS_FILE={file}: models.fox.path={fox} is a single file, which lacks configs and "
        "tokenizers"
    )
    return [("models file", "FAIL", said, "aura download sdxl")]


def lora_for_another_model(setup: SetUp) -> list[Found]:
    ink = setup.folder / "ink.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(4, 8)}, ink)
    file = setup.listing(loras="{ink: {path: ink.safetensors}}")
    said = (
        f"MODELS_FILE={file}: loras.ink.path={ink} is a LoRA for another kind of model; only "
        "LoRAs for SDXL fit"
    )
    return [("models file", "FAIL", said, f'"${{EDITOR:-vi}}" {file}')]


def terms_of_a_lora_not_known(setup: SetUp) -> list[Found]:
    lora_file(demo_folder(Stage.BASE), setup.folder / "ink.safetensors", networks=["unet"])
    file = setup.listing(loras="{ink: {path: ink.safetensors}}")
    said = (
        "the terms of the LoRA ink are not known: see where it came from, and name them as its "
        "license"
    )
    return [("licence", "WARN", said, f'"${{EDITOR:-vi}}" {file}')]


def no_models_file(setup: SetUp) -> list[Found]:
    file = setup.folder / "models.yaml"
    setup.export(MODELS_FILE=file)
    said = f"MODELS_FILE={file} can't be read: [Errno 2] No such file or directory: '{file}'"
    return [("models file", "FAIL", said, "unset MODELS_FILE")]


def terms_of_a_listed_model_not_accepted(setup: SetUp) -> list[Found]:
    shutil.copytree(demo_folder(Stage.BASE), setup.folder / "fox")
    for name in ("LICENSE", "README.md"):
        (setup.folder / "fox" / name).unlink()
    file = setup.listing("{fox: {path: fox}}")
    said = (
        "fox is under CreativeML Open RAIL++-M (assumed: its folder does not say), and no "
        "acceptance of it lies beside its weights (acceptance.json): read it, name it as its "
        "license"
    )
    return [("licence", "WARN", said, f'"${{EDITOR:-vi}}" {file}')]


def misspelt(setup: SetUp) -> list[Found]:
    setup.set(MODEL_PRECISON="fp16")
    said = "MODEL_PRECISON is not a setting of this service. Did you mean MODEL_PRECISION?"
    return [
        ("settings", "FAIL", said, "sed -i.bak 's/MODEL_PRECISON=/MODEL_PRECISION=/' .env.local")
    ]


def misspelt_and_exported(setup: SetUp) -> list[Found]:
    setup.export(MODEL_DEVISE="cpu")
    said = "MODEL_DEVISE is not a setting of this service. Did you mean MODEL_DEVICE?"
    return [("settings", "FAIL", said, 'export MODEL_DEVICE="$MODEL_DEVISE"; unset MODEL_DEVISE')]


def illegal_value(setup: SetUp) -> list[Found]:
    setup.set(MODEL_PRECISION="fp8")
    said = "MODEL_PRECISION=fp8: must be 'fp32', 'fp16' or 'bf16'"
    return [("settings", "FAIL", said, "MODEL_PRECISION=")]


def every_origin(setup: SetUp) -> list[Found]:
    setup.export(ALLOWED_ORIGINS="*")
    said = "ALLOWED_ORIGINS=*: must name the origins that may call: * would let every web page in"
    return [("settings", "FAIL", said, "unset ALLOWED_ORIGINS")]


def settings_in_utf_16(setup: SetUp) -> list[Found]:
    (setup.folder / ".env.local").write_text("MODEL_DEVICE=cpu\r\n", encoding="utf-16")
    said = ".env.local is not UTF-8 text (invalid start byte): PowerShell's > writes UTF-16"
    mend = "iconv -f UTF-16 -t UTF-8 .env.local > .env.local.utf8 && mv .env.local.utf8 .env.local"
    return [("settings", "FAIL", said, mend)]


def slip_in_the_config(setup: SetUp) -> list[Found]:
    setup.edit_config("base: { min_replicas", "base: { min_replica")
    said = (
        "serve_config.yaml: applications[0].args.base.min_replica is unknown; did you mean "
        "min_replicas?"
    )
    return [("config", "FAIL", said, '"${EDITOR:-vi}" serve_config.yaml')]


def no_config(setup: SetUp) -> list[Found]:
    (setup.folder / "serve_config.yaml").unlink()
    setup.export(BACKEND_PORT=setup.port)
    said = "serve_config.yaml is not there: run this where it is, or name another"
    return [("config", "FAIL", said, "aura doctor --config PATH")]


def another_address(setup: SetUp) -> list[Found]:
    setup.export(IMAGE_SERVICE_BASE_URL="http://localhost:3999")
    said = (
        f"IMAGE_SERVICE_BASE_URL=http://localhost:3999, but the service listens on port "
        f"{setup.port}: a frontend that reads it gets no answer"
    )
    mend = f"export IMAGE_SERVICE_BASE_URL=http://localhost:{setup.port}"
    return [("address", "WARN", said, mend)]


def vite_on_our_port(setup: SetUp) -> list[Found]:
    setup.export(VITE_PORT=setup.port)
    said = (
        f"VITE_PORT={setup.port} is the service's own port: the frontend's development server "
        "needs another"
    )
    return [("origins", "FAIL", said, "export VITE_PORT=5173")]


def no_ray_at_its_address(setup: SetUp) -> list[Found]:
    setup.export(RAY_ADDRESS=f"127.0.0.1:{setup.port}")
    said = f"RAY_ADDRESS=127.0.0.1:{setup.port}, but no Ray answers there"
    return [("ray", "FAIL", said, "unset RAY_ADDRESS")]


def ray_without_tokens(setup: SetUp) -> list[Found]:
    setup.export(RAY_AUTH_MODE="disabled")
    said = (
        "RAY_AUTH_MODE=disabled: whoever reaches the ports of the service's own Ray may run code "
        "here"
    )
    return [("ray ports", "WARN", said, "unset RAY_AUTH_MODE")]


def ledger_is_a_folder(setup: SetUp) -> list[Found]:
    setup.export(LEDGER_FILE=setup.folder)
    said = f"{setup.folder} is a folder, and must be a file"
    return [("ledger", "FAIL", said, "unset LEDGER_FILE")]


def ledger_under_a_file(setup: SetUp) -> list[Found]:
    setup.export(LEDGER_FILE=setup.folder / "serve_config.yaml/ledger.sqlite")
    file = setup.folder / "serve_config.yaml"
    said = f"{file}/ledger.sqlite can't be made: {file} is a file, no folder"
    return [("ledger", "FAIL", said, "unset LEDGER_FILE")]


def ledger_is_something_else(setup: SetUp) -> list[Found]:
    (setup.folder / "notes.txt").write_text("milk, bread and sixteen eggs")
    setup.export(LEDGER_FILE=setup.folder / "notes.txt")
    file = setup.folder / "notes.txt"
    said = f"{file} is no ledger: something else than an SQLite database lies there"
    return [("ledger", "FAIL", said, f"mv {file} {file}.other")]


def no_word_list(setup: SetUp) -> list[Found]:
    setup.export(SAFETY_WORDS_FILE=setup.folder / "words.txt")
    file = setup.folder / "words.txt"
    said = f"SAFETY_WORDS_FILE={file} can't be read: [Errno 2] No such file or directory: '{file}'"
    return [("filters", "FAIL", said, "unset SAFETY_WORDS_FILE")]


def no_checker(setup: SetUp) -> list[Found]:
    checker = setup.folder / "checker"
    setup.export(SAFETY_CHECKER_DIR=checker)
    said = f"SAFETY_CHECKER_DIR={checker} lacks config.json"
    mend = f"hf download CompVis/stable-diffusion-safety-checker --local-dir {checker}"
    return [("filters", "FAIL", said, mend)]


def half_precision_on_the_cpu(setup: SetUp) -> list[Found]:
    setup.export(MODEL_PRECISION="fp16")
    said = (
        "MODEL_PRECISION=fp16 on the CPU, whose convolutions are many times slower in it than in "
        "fp32"
    )
    return [("precision", "WARN", said, "export MODEL_PRECISION=fp32")]


def cuda_without_a_card(setup: SetUp) -> list[Found]:
    setup.set(MODEL_DEVICE="cuda")
    (setup.folder / ".env.local").rename(setup.folder / ".env")
    base = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo draws plain shapes, whatever else stands in "
        ".env"
    )
    said = "MODEL_DEVICE=cuda, but no CUDA device is seen"
    return [
        ("base", "WARN", base, "aura download"),
        ("device", "FAIL", said, "MODEL_DEVICE=auto"),
    ]


def open_to_all_without_a_key(setup: SetUp) -> list[Found]:
    setup.edit_config("host: 127.0.0.1", "host: 0.0.0.0")
    said = (
        "the config's host is 0.0.0.0, but without API_KEYS the service listens on 127.0.0.1 alone"
    )
    return [("keys", "WARN", said, NEW_KEY)]


def short_keys(setup: SetUp) -> list[Found]:
    setup.export(API_KEYS="secret")
    said = "1 of 1 API_KEYS can be guessed: shorter than 16 characters"
    return [("keys", "WARN", said, f"unset API_KEYS; {NEW_KEY}")]


NEW_KEY = (
    "python -c \"import secrets; print('\\nAPI_KEYS=' + secrets.token_urlsafe(24))\" >> .env.local"
)
BROKEN: list[Break] = [
    wrong_path,
    wrong_path_beside_the_right_one,
    pickle_weights,
    truncated,
    web_page,
    lfs_pointer,
    no_unet,
    refiner_in_the_place_of_the_base,
    refiner_alone,
    refiner_of_another_noise,
    unset,
    unset_beside_weights,
    half_downloaded,
    half_downloaded_by_the_hub_s_own_tool,
    terms_not_accepted,
    single_file_without_configs,
    single_file_beside_a_folder_with_configs,
    file_that_is_no_checkpoint,
    unknown_key_of_a_model,
    model_that_is_not_there,
    listed_file_without_configs,
    no_models_file,
    lora_for_another_model,
    terms_of_a_listed_model_not_accepted,
    terms_of_a_lora_not_known,
    misspelt,
    misspelt_and_exported,
    illegal_value,
    every_origin,
    settings_in_utf_16,
    slip_in_the_config,
    no_config,
    another_address,
    vite_on_our_port,
    no_ray_at_its_address,
    ray_without_tokens,
    ledger_is_a_folder,
    ledger_under_a_file,
    ledger_is_something_else,
    no_word_list,
    no_checker,
    half_precision_on_the_cpu,
    cuda_without_a_card,
    open_to_all_without_a_key,
    short_keys,
]
MENDED_AT_ONCE: list[Break] = [
    wrong_path_beside_the_right_one,
    unset_beside_weights,
    refiner_of_another_noise,
    single_file_beside_a_folder_with_configs,
    no_models_file,
    misspelt,
    misspelt_and_exported,
    illegal_value,
    every_origin,
    settings_in_utf_16,
    another_address,
    vite_on_our_port,
    no_ray_at_its_address,
    ray_without_tokens,
    ledger_is_a_folder,
    ledger_is_something_else,
    no_word_list,
    half_precision_on_the_cpu,
    cuda_without_a_card,
    open_to_all_without_a_key,
    short_keys,
]
