"""Which files are wanted, on the list of names that SDXL's own repositories have."""

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DownloadError
from serve_app.hub.selection import (
    HubRepo,
    RepoFile,
    RepoRequest,
    Repository,
    half_wanted,
    repos_for,
    select_files,
    stage_of,
)

ASKED = RepoRequest("artist/model", "main", "https://hub.example", "aura download")
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
CONFIGS = {
    "LICENSE.md",
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in PARTS),
    *(
        f"{part}/{name}"
        for part in ("tokenizer", "tokenizer_2")
        for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
    ),
}
FULL = {
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}
HALF = {path.replace(".safetensors", ".fp16.safetensors") for path in FULL}
UNWANTED = {
    ".gitattributes",
    "01.png",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml",
    "text_encoder_2/model.onnx_data",
    "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/config.json",
    "../unet/config.json",
    "unet/../config.json",
    "unet/more/config.json",
}
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    **{part: ["library", "Class"] for part in PARTS},
}


def repository(paths: set[str], size: int | None = 7, sha256: str | None = "ab") -> Repository:
    entries = tuple(RepoFile(path, size, sha256, None) for path in sorted(paths))
    return Repository(ASKED, "c0ffee", "openrail++", ASKED.page, entries)


def paths_wanted(paths: set[str], *, half: bool, index: dict[str, object] = INDEX) -> set[str]:
    return {e.path for e in select_files(repository(paths), index, Stage.BASE, half=half)}


def test_half_precision_takes_the_fp16_files_alone_and_full_the_others() -> None:
    everything = CONFIGS | FULL | HALF | UNWANTED
    assert paths_wanted(everything, half=True) == CONFIGS | HALF
    assert paths_wanted(everything, half=False) == CONFIGS | FULL


@pytest.mark.parametrize("half", [True, False])
def test_where_there_is_one_variant_it_is_that_one(half: bool) -> None:
    mixed = {path for path in FULL if "vae" in path} | {p for p in HALF if "vae" not in p}
    assert paths_wanted(CONFIGS | mixed, half=half) == CONFIGS | mixed


def test_weights_cut_into_shards_come_with_the_list_of_their_own_variant() -> None:
    full = {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    }
    half = {
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    }
    others = CONFIGS | {path for path in FULL if "unet" not in path}
    assert paths_wanted(others | full | half, half=True) == others | half
    assert paths_wanted(others | full | half, half=False) == others | full


def test_a_part_that_only_this_pipeline_has_comes_too() -> None:
    more = {"image_encoder/config.json", "image_encoder/model.safetensors"}
    index: dict[str, object] = {**INDEX, "image_encoder": ["transformers", "CLIPVision"]}
    assert paths_wanted(CONFIGS | FULL | more, half=False, index=index) == CONFIGS | FULL | more


def test_a_refiner_needs_one_text_encoder() -> None:
    index = INDEX | {"text_encoder": [None, None], "tokenizer": [None, None]}
    paths = {
        e.path for e in select_files(repository(CONFIGS | FULL), index, Stage.REFINER, half=False)
    }
    assert not any(path.startswith(("text_encoder/", "tokenizer/")) for path in paths)
    with pytest.raises(DownloadError, match=r"artist/model lacks text_encoder in model_index.json"):
        select_files(repository(CONFIGS | FULL), index, Stage.BASE, half=False)


def test_the_small_files_come_first() -> None:
    entries = (
        RepoFile("model_index.json", 500, None, "aa"),
        *(RepoFile(path, 7000, "bb", None) for path in sorted(FULL)),
        *(RepoFile(f"{part}/config.json", 60, None, "aa") for part in PARTS),
    )
    found = select_files(Repository(ASKED, "c", "", "", entries), INDEX, Stage.BASE, half=False)
    assert [e.size for e in found] == [60] * 4 + [500] + [7000] * 4


def test_pickles_alone_are_refused() -> None:
    pickled = CONFIGS | FULL - {"unet/diffusion_pytorch_model.safetensors"}
    pickled |= {"unet/diffusion_pytorch_model.bin"}
    with pytest.raises(DownloadError, match="has no weights of unet as safetensors"):
        paths_wanted(pickled, half=True)


@pytest.mark.parametrize(("size", "sha256"), [(None, "ab"), (7, None)])
def test_what_could_not_be_verified_is_refused(size: int | None, sha256: str | None) -> None:
    with pytest.raises(DownloadError, match=r"says neither size nor hash of .*HF_ENDPOINT"):
        select_files(repository(CONFIGS | FULL, size, sha256), INDEX, Stage.BASE, half=True)


def test_the_stage_is_that_of_the_class() -> None:
    assert stage_of({"_class_name": "StableDiffusionXLPipeline"}, ASKED) is Stage.BASE
    assert stage_of({"_class_name": "StableDiffusionXLImg2ImgPipeline"}, ASKED) is Stage.REFINER
    for kind in ("StableDiffusionPipeline", "StableDiffusionXLInpaintPipeline", None, ["a", "b"]):
        with pytest.raises(
            DownloadError, match=r"is no SDXL base or refiner: its model_index.json"
        ):
            stage_of({"_class_name": kind}, ASKED)


@pytest.mark.parametrize(
    ("precision", "device", "half"),
    [
        ("fp16", "cpu", True),
        ("bf16", "auto", True),
        ("fp32", "cuda", False),
        (None, "cpu", False),
        (None, "auto", True),
        (None, "cuda:1", True),
        (None, "mps", True),
    ],
)
def test_half_the_bytes_unless_the_service_computes_in_fp32(
    precision: str | None, device: str, half: bool
) -> None:
    assert half_wanted(precision, device) is half


def test_words_stand_for_repositories() -> None:
    (base,) = repos_for("sdxl")
    (refiner,) = repos_for("sdxl-refiner")
    assert base == HubRepo("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-base")
    assert refiner == HubRepo("stabilityai/stable-diffusion-xl-refiner-1.0", "sdxl-refiner")
    assert repos_for("all") == (base, refiner)
    assert repos_for(base.name) == (base,)
    assert repos_for("artist/model_v1.0") == (HubRepo("artist/model_v1.0", "model_v1.0"),)


@pytest.mark.parametrize("wish", ["sdxl-base", "", "a/b/c", "../up", "a/..", "a/b c", "-a/b"])
def test_a_word_that_stands_for_nothing_is_told_what_it_may_be(wish: str) -> None:
    with pytest.raises(DownloadError, match=r"must be sdxl, sdxl-refiner, all, or the OWNER/NAME"):
        repos_for(wish)
