"""The LoRAs of a request, and the warnings about them beside a refiner, which takes none."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.errors import InvalidRequest, ModelNotFound
from serve_app.core.service.info import ExtensionInfo, ModelInfo, ServiceInfo
from serve_app.ingress.generation import GenerationRequest, RefinementRequest, plan_job
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.image_input import LoadedInputs
from serve_app.ingress.lookup import ExtensionChoice
from serve_app.ingress.native.rerun import GENERATE, REFINE
from tests.support.engine_runs import NOISE

INFO = ServiceInfo(
    (ModelInfo("sdxl", 1024, NOISE),),
    "refiner",
    "cpu",
    "fp32",
    default_image_count=1,
    extensions=(ExtensionInfo("lora", "ink", ("sdxl",)), ExtensionInfo("lora", "oil", ("other",))),
)
IMAGE = LoadedInputs((1024, 1024), ImageInputs(bytes(3 * 1024 * 1024)))
IGNORED = "loras are ignored: the refiner makes this image alone, without LoRAs"
BASE_ONLY = "loras apply to the base stage only: the refiner runs without them"
INK: dict[str, Any] = {"extensions": (ExtensionChoice("ink"),)}


def generation(info: ServiceInfo = INFO, **fields: Any) -> GenerationJob:
    request = GenerationRequest(**({"prompt": "a fox"} | fields))
    return plan_job(request, [], info, 1, GENERATE)


def refinement(info: ServiceInfo = INFO, **fields: Any) -> GenerationJob:
    request = RefinementRequest(prompt="a fox", **fields)
    return plan_job(request, [IMAGE], info, 1, REFINE)


@pytest.mark.parametrize(
    ("fields", "warnings"),
    [
        ({}, ()),
        (INK, (BASE_ONLY,)),
        (INK | {"refine": False}, ()),
        (INK | {"handoff": 0}, (IGNORED,)),
        (INK | {"handoff": 1}, ()),
    ],
)
def test_an_image_s_loras_end_at_the_hand_off(
    fields: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    assert generation(**fields).warnings == warnings


@pytest.mark.parametrize(
    ("fields", "warnings"),
    [
        ({"strength": 0.6}, (BASE_ONLY,)),
        ({"strength": 0.1}, (IGNORED,)),
        ({"refiner_only": True}, (IGNORED,)),
        ({"handoff": 1}, ()),
    ],
)
def test_an_image_that_starts_after_the_hand_off_has_none(
    fields: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    assert refinement(**INK, **fields).warnings == warnings


def test_without_a_refiner_there_is_no_warning() -> None:
    assert refinement(replace(INFO, refiner=None), strength=0.1, **INK).warnings == ()


LEFT_OUT = "<lora:…> in the prompt is left out: it names no LoRA for sdxl. Available: ink"


@pytest.mark.parametrize(
    ("prompt", "weight", "warnings"),
    [
        ("a fox <lora:ink:0.8>", 0.8, ()),
        ("<lyco:ink:-0.5>a fox", -0.5, ()),
        ("a fox <lora:ink>", 0.4, ()),
        (
            "a fox <lora:ink:3>",
            2,
            ("the weight of <lora:…> in the prompt was kept between -2 and 2",),
        ),
        (
            "a fox <lora:ink:0.8:0.5>",
            0.8,
            ("only the first weight of <lora:…> in the prompt is used, and must be a number",),
        ),
        (
            "a fox <lora:ink:0.8> <lora:ink:1>",
            0.8,
            ("<lora:…> in the prompt is left out: it names a LoRA that is chosen already",),
        ),
        ("a fox <lora:../ink:1>", None, (LEFT_OUT,)),
        ("a fox <lora:oil:1>", None, (LEFT_OUT,)),
        (
            "a fox <hypernet:ink:1>",
            None,
            ("<hypernet:…> in the prompt is left out: there are no hypernetworks",),
        ),
        (
            "a fox <wildcard:ink>",
            None,
            ("<name:…> in the prompt is read as text: only <lora:…> and <lyco:…> are known",),
        ),
    ],
)
def test_a_lora_that_the_prompt_names_is_chosen(
    prompt: str, weight: float | None, warnings: tuple[str, ...]
) -> None:
    ink = replace(INFO.extensions[0], default_weight=0.4)
    info = replace(INFO, refiner=None, extensions=(ink, INFO.extensions[1]))
    job = generation(info, prompt=prompt)
    spec = job.images[0].spec
    assert spec.extensions == (() if weight is None else (ExtensionRef(*ink.key, weight),))
    assert spec.prompt == (prompt if "wildcard" in prompt else "a fox")
    assert job.images[0].prompt == spec.prompt
    assert job.warnings == warnings
    again = GENERATE.request(job, job.images[0])
    assert again["prompt"] == spec.prompt
    assert [lora["weight"] for lora in again.get("loras", [])] == [weight] * (weight is not None)


def test_the_field_of_a_request_wins_over_its_prompt() -> None:
    job = generation(
        replace(INFO, refiner=None),
        prompt="a fox <lora:ink:0.8>",
        extensions=(ExtensionChoice("ink", 0.5),),
    )
    assert [ref.weight for ref in job.images[0].spec.extensions] == [0.5]
    assert job.warnings == (
        "<lora:…> in the prompt is left out: it names a LoRA that is chosen already",
    )


def test_a_prompt_of_loras_alone_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt must have words besides the LoRAs"):
        generation(prompt="<lora:ink:1>")


def test_a_lora_in_a_text_that_changes_is_active_at_every_step() -> None:
    info = replace(INFO, refiner=None)
    job = generation(info, prompt="a [fox <lora:ink:0.8>:cat:0.5]")
    spec = job.images[0].spec
    assert spec.prompt == "a [fox :cat:0.5]"
    assert [ref.name for ref in spec.extensions] == ["ink"]
    assert job.warnings == (
        "<lora:…> in [from:to:when] or [a|b] is active at every step: only words change",
    )
    assert generation(info, prompt="a [fox:cat:0.5] <lora:ink:0.8>").warnings == ()


@pytest.mark.parametrize(
    ("prompt", "strength", "late"),
    [
        ("a [fox:cat:0.5]", 0.6, None),
        ("a [fox:cat:0.5]", 0.5, "10 of 20, and 10 run"),
        ("a [fox:cat:19] [owl|hen]", 1.0, None),
        ("a [fox:cat:3] [owl:hen:20]", 1.0, "20 of 20, and 20 run"),
        ("at [5:30]", 0.01, "20 of 20, and 1 runs"),
    ],
)
def test_a_change_after_the_last_step_is_named(
    prompt: str, strength: float, late: str | None
) -> None:
    request = RefinementRequest(
        prompt=prompt, negative_prompt=prompt, strength=strength, steps=20, guidance=5.0
    )
    job = plan_job(request, [IMAGE], replace(INFO, refiner=None), 1, REFINE)
    warnings = [warning for warning in job.warnings if "comes too late" in warning]
    assert warnings == [
        f"[from:to:when] in the {name} comes too late: it changes after step {late}"
        for name in ("prompt", "negative prompt")
        if late
    ]


def test_marks_are_named_in_both_prompts_on_both_routes() -> None:
    info = replace(INFO, refiner=None)
    prompts: dict[str, Any] = {"negative_prompt": "blur <lora:ink:1> [a|b:c]"}
    warnings = (
        "<lora:…> in the negative prompt is left out: name it in the prompt",
        "AND in the prompt is read as text: prompts are not combined",
        "[a|b] in the negative prompt is read as text: its colons, bars or brackets are not in "
        "their places",
    )
    generated = generation(info, prompt="a fox AND a cat", **prompts)
    refined = plan_job(
        RefinementRequest(prompt="a fox AND a cat", **prompts), [IMAGE], info, 1, REFINE
    )
    for job in (generated, refined):
        assert job.warnings == warnings
        assert job.images[0].spec.negative_prompt == "blur  [a|b:c]"


def test_no_more_loras_are_active_at_once_than_are_kept_in_memory() -> None:
    loras = tuple(ExtensionInfo("lora", name, ("sdxl",)) for name in ("a", "b", "c"))
    info = replace(INFO, extensions=loras, max_extensions=2)
    choices = (ExtensionChoice("a"), ExtensionChoice("b", 0), ExtensionChoice("c"))
    assert len(generation(info, extensions=choices).images) == 1
    choices = (ExtensionChoice("a"), ExtensionChoice("b", 0.1), ExtensionChoice("c"))
    with pytest.raises(InvalidRequest, match="loras must name at most 2 LoRAs, got 3"):
        generation(info, extensions=choices)


def test_a_lora_must_be_known_fit_the_model_and_be_named_once() -> None:
    with pytest.raises(ModelNotFound, match=r"loras\.0\.name is unknown\. Available: ink, oil"):
        generation(extensions=(ExtensionChoice("/etc/passwd"),))
    with pytest.raises(InvalidRequest, match=r"not made for the model sdxl; it fits other"):
        generation(extensions=(ExtensionChoice("oil"),))
    with pytest.raises(InvalidRequest, match=r"loras\.1\.name names ink a second time"):
        generation(extensions=(ExtensionChoice("ink"), ExtensionChoice("ink")))
