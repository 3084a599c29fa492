"""What an asker is told of LoRAs beside a refiner, which wears none."""

from dataclasses import replace

import pytest

from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import LoraInfo, ModelInfo, ServiceInfo
from serve_app.ingress.generation import plan_generate, plan_refine
from serve_app.ingress.image_input import BaseImage
from serve_app.ingress.native.schemas import GenerateRequest, RefineRequest
from tests.support.engine_runs import NOISE

FACTS = ServiceInfo(
    (ModelInfo("sdxl", 1024, NOISE),),
    "refiner",
    "cpu",
    "fp32",
    default_image_count=1,
    loras=(LoraInfo("ink", ("sdxl",)),),
)
IMAGE = BaseImage(1024, 1024, bytes(3 * 1024 * 1024), None, "digest")
IGNORED = "loras are ignored: the refiner works alone, and wears none"
PARTLY = "loras count in base alone: the refiner goes on without them"
WORN = {"loras": [{"name": "ink"}]}


@pytest.mark.parametrize(
    ("asked", "warnings"),
    [
        ({}, ()),
        (WORN, (PARTLY,)),
        (WORN | {"refine": False}, ()),
        (WORN | {"handoff": 0}, (IGNORED,)),
        (WORN | {"handoff": 1}, ()),
    ],
)
def test_a_picture_s_loras_end_at_the_hand_off(
    asked: dict[str, object], warnings: tuple[str, ...]
) -> None:
    request = GenerateRequest.model_validate({"prompt": "a fox"} | asked)
    assert plan_generate(request, FACTS, 1).warnings == warnings


@pytest.mark.parametrize(
    ("asked", "warnings"),
    [
        ({"strength": 0.6}, (PARTLY,)),
        ({"strength": 0.1}, (IGNORED,)),
        ({"config": {"modelPath": "refiner"}}, (IGNORED,)),
        ({"handoff": 1}, ()),
    ],
)
def test_a_refined_picture_that_enters_late_wears_none(
    asked: dict[str, object], warnings: tuple[str, ...]
) -> None:
    body = {"prompt": "a fox", "images": ["x"]} | WORN | asked
    order = plan_refine(RefineRequest.model_validate(body), [IMAGE], FACTS, 1)
    assert order.warnings == warnings


def test_where_there_is_no_refiner_nothing_is_told() -> None:
    body = {"prompt": "a fox", "images": ["x"], "strength": 0.1} | WORN
    request = RefineRequest.model_validate(body)
    assert plan_refine(request, [IMAGE], replace(FACTS, refiner=None), 1).warnings == ()


def test_a_lora_in_the_prompt_is_told_for_words() -> None:
    request = GenerateRequest.model_validate({"prompt": "a fox <lora:ink:0.8>"})
    assert plan_generate(request, FACTS, 1).warnings == (
        "<lora:…> in the prompt is read as words: name LoRAs in the field loras",
    )


def test_no_more_are_worn_at_once_than_are_kept_in_memory() -> None:
    loras = tuple(LoraInfo(name, ("sdxl",)) for name in ("a", "b", "c"))
    facts = replace(FACTS, loras=loras, max_loras=2)
    worn: list[dict[str, object]] = [{"name": "a"}, {"name": "b", "weight": 0}, {"name": "c"}]
    request = GenerateRequest.model_validate({"prompt": "a fox", "loras": worn})
    assert len(plan_generate(request, facts, 1).images) == 1
    worn[1]["weight"] = 0.1
    request = GenerateRequest.model_validate({"prompt": "a fox", "loras": worn})
    with pytest.raises(InvalidRequest, match="loras may be 2 at once, got 3"):
        plan_generate(request, facts, 1)
