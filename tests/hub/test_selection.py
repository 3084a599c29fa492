"""Which files are selected from the names that SDXL's own repositories have."""

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DownloadError
from serve_app.hub.selection import (
    HubRepo,
    RepoFile,
    RepoRequest,
    Repository,
    prefers_half,
    repos_for,
    select_files,
    stage_of,
)

REQUEST = RepoRequest("artist/model", "main", "https://hub.example", "aura download")
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
OTHERS = {
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
INDEX: dict[str, object] = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    **{part: ["library", "Class"] for part in PARTS},
}


def repository(paths: set[str], size: int | None = 7, sha256: str | None = "ab") -> Repository:
    files = tuple(RepoFile(path, size, sha256, None) for path in sorted(paths))
    return Repository(REQUEST, "c0ffee", "openrail++", REQUEST.page, files)


def selected(
    paths: set[str],
    *,
    half: bool,
    index: dict[str, object] = INDEX,
    stage: Stage = Stage.BASE,
) -> set[str]:
    return {file.path for file in select_files(repository(paths), index, stage, half=half)}


def test_half_selects_the_fp16_files_and_full_the_others() -> None:
    everything = CONFIGS | FULL | HALF | OTHERS
    assert selected(everything, half=True) == CONFIGS | HALF
    assert selected(everything, half=False) == CONFIGS | FULL


@pytest.mark.parametrize("half", [True, False])
def test_the_only_variant_is_selected_at_any_precision(half: bool) -> None:
    mixed = {path for path in FULL if "vae" in path} | {p for p in HALF if "vae" not in p}
    assert selected(CONFIGS | mixed, half=half) == CONFIGS | mixed


def test_shards_are_selected_with_the_index_of_their_variant() -> None:
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
    assert selected(others | full | half, half=True) == others | half
    assert selected(others | full | half, half=False) == others | full


def test_a_further_component_of_the_pipeline_is_selected_too() -> None:
    more = {"image_encoder/config.json", "image_encoder/model.safetensors"}
    index: dict[str, object] = {**INDEX, "image_encoder": ["transformers", "CLIPVision"]}
    assert selected(CONFIGS | FULL | more, half=False, index=index) == CONFIGS | FULL | more


def test_a_refiner_needs_one_text_encoder() -> None:
    index = INDEX | {"text_encoder": [None, None], "tokenizer": [None, None]}
    paths = selected(CONFIGS | FULL, half=False, index=index, stage=Stage.REFINER)
    assert not any(path.startswith(("text_encoder/", "tokenizer/")) for path in paths)
    with pytest.raises(DownloadError, match=r"artist/model lacks text_encoder in model_index.json"):
        selected(CONFIGS | FULL, half=False, index=index)


def test_the_small_files_come_first() -> None:
    files = (
        RepoFile("model_index.json", 500, None, "aa"),
        *(RepoFile(path, 7000, "bb", None) for path in sorted(FULL)),
        *(RepoFile(f"{part}/config.json", 60, None, "aa") for part in PARTS),
    )
    sorted_files = select_files(
        Repository(REQUEST, "c", "", "", files), INDEX, Stage.BASE, half=False
    )
    assert [file.size for file in sorted_files] == [60] * 4 + [500] + [7000] * 4


def test_pickles_alone_are_refused() -> None:
    pickled = CONFIGS | FULL - {"unet/diffusion_pytorch_model.safetensors"}
    pickled |= {"unet/diffusion_pytorch_model.bin"}
    with pytest.raises(DownloadError, match="has no safetensors weights for unet"):
        selected(pickled, half=True)


@pytest.mark.parametrize(("size", "sha256"), [(None, "ab"), (7, None)])
def test_files_that_can_not_be_verified_are_refused(size: int | None, sha256: str | None) -> None:
    with pytest.raises(DownloadError, match=r"states no size or hash for .*HF_ENDPOINT"):
        select_files(repository(CONFIGS | FULL, size, sha256), INDEX, Stage.BASE, half=True)


def test_the_pipeline_class_determines_the_stage() -> None:
    assert stage_of({"_class_name": "StableDiffusionXLPipeline"}, REQUEST) is Stage.BASE
    assert stage_of({"_class_name": "StableDiffusionXLImg2ImgPipeline"}, REQUEST) is Stage.REFINER
    for pipeline in (
        "StableDiffusionPipeline",
        "StableDiffusionXLInpaintPipeline",
        None,
        ["a", "b"],
    ):
        with pytest.raises(
            DownloadError, match=r"is neither an SDXL base nor a refiner: the class"
        ):
            stage_of({"_class_name": pipeline}, REQUEST)


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
def test_fp16_files_are_preferred_unless_the_service_runs_in_fp32(
    precision: str | None, device: str, half: bool
) -> None:
    assert prefers_half(precision, device) is half


def test_words_mean_repositories() -> None:
    (base,) = repos_for("sdxl")
    (refiner,) = repos_for("sdxl-refiner")
    assert base == HubRepo("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-base")
    assert refiner == HubRepo("stabilityai/stable-diffusion-xl-refiner-1.0", "sdxl-refiner")
    assert repos_for("all") == (base, refiner)
    assert repos_for(base.name) == (base,)
    assert repos_for("artist/model_v1.0") == (HubRepo("artist/model_v1.0", "model_v1.0"),)


@pytest.mark.parametrize("word", ["sdxl-base", "", "a/b/c", "../up", "a/..", "a/b c", "-a/b"])
def test_an_unknown_word_is_an_error_that_lists_the_known(word: str) -> None:
    with pytest.raises(DownloadError, match=r"must be sdxl, sdxl-refiner, all, or the OWNER/NAME"):
        repos_for(word)
