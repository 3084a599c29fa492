from dataclasses import replace

from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.service.info import (
    CloudModel,
    ExtensionInfo,
    License,
    ModelInfo,
    ServiceInfo,
)

SDXL = ModelInfo("sdxl", 512, NoiseConfig())


def test_models_know_their_legal_sizes() -> None:
    assert SDXL.sizes.for_aspect("1:1") == (512, 512)


def test_other_licences_are_other_terms() -> None:
    info = ServiceInfo((SDXL,), None, "cpu", "fp32", 2)
    license = License("sdxl", "RAIL", "", (), "text")
    licensed = replace(info, licenses=(license,))
    other = replace(info, licenses=(replace(license, text="another"),))
    assert len({info.terms_digest, licensed.terms_digest, other.terms_digest}) == 3
    assert licensed.terms_digest == replace(licensed, device="cuda").terms_digest


def test_models_are_found_by_name_and_the_first_is_the_default() -> None:
    few = replace(SDXL, name="few", can_be_refined=False)
    info = ServiceInfo((SDXL, few), "sdxl-refiner", "cpu", "fp32", 2)
    assert (info.default_model, info.model_names) == (SDXL, ("sdxl", "few"))
    assert info.find_model("few") == few
    assert info.find_model("none") is None
    assert [info.can_refine(model) for model in info.models] == [True, False]
    assert not replace(info, refiner=None).can_refine(SDXL)


def test_an_alias_finds_its_model_unless_two_have_it_or_it_is_a_name() -> None:
    first = replace(SDXL, aliases=("/models/sdxl", "few", "tune.safetensors"))
    few = replace(SDXL, name="few", aliases=("owner/few", "tune.safetensors"))
    info = ServiceInfo(
        (first, few), "refiner", "cpu", "fp32", 2, refiner_aliases=("/models/refiner", "owner/few")
    )
    assert info.find_model("/models/sdxl/") == first
    assert info.find_model("owner/few") == info.find_model("few") == few
    assert info.find_model("tune.safetensors") is None
    assert info.find_model("") is info.find_model("/" * 5000) is None
    assert [info.is_refiner(n) for n in ("refiner", "/models/refiner/", "owner/few", "few")] == [
        True,
        True,
        False,
        False,
    ]
    assert not replace(info, refiner=None, refiner_aliases=()).is_refiner("refiner")


def test_loras_are_found_by_name() -> None:
    ink = ExtensionInfo("lora", "ink", ("sdxl",), 0.8)
    info = ServiceInfo((SDXL,), None, "cpu", "fp32", 2, extensions=(ink,))
    assert info.find_extension("lora", "ink") == ink
    assert str(ink.key) == "LoRA ink"
    assert info.find_extension("lora", "sdxl") is None


def test_a_clouds_model_is_none_of_the_local_ones_and_callers_are_warned() -> None:
    cloud = replace(SDXL, name="gemini", cloud=CloudModel("banana-2", "Google"))
    info = ServiceInfo((SDXL,), None, "cpu", "fp32", 2)
    assert info.cloud_notice == ""
    beside, default = replace(info, models=(SDXL, cloud)), replace(info, models=(cloud, SDXL))
    assert beside.local_models == default.local_models == (SDXL,)
    assert beside.cloud_notice == (
        "prompts and input images of requests for the model gemini are sent to Google's cloud, "
        "which makes the images"
    )
    assert default.cloud_notice == (
        "prompts and input images are sent to Google's cloud, which makes the images (banana-2)"
    )
