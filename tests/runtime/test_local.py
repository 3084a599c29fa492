"""Both stages in one process: the same images as stock, with a report of every step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import SafetyBlock
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, num_parameters
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.vae import RgbImage
from tests.support.reference_diffusers import Stock
from tests.support.simulated_card import SimulatedCard

LEVELS = 2  # of 255
SPEC = ImageSpec(
    prompt="a red star on the left on a white background",
    seed=7,
    width=128,
    height=128,
    steps=10,
    guidance=6.9,
    handoff=0.8,
)


class Refusing:
    """A filter that refuses every image."""

    def refuses_image(self, image: RgbImage) -> bool:
        return True


@pytest.fixture(scope="module")
def pipeline(checkpoints: dict[Stage, Checkpoint], cpu: Device) -> LocalPipeline:
    return LocalPipeline(list(checkpoints.values()), cpu, images=2)


def test_base_hands_over_to_the_refiner_as_stock_pipelines_do(
    pipeline: LocalPipeline, stock: Stock
) -> None:
    (picture,) = pipeline.generate([SPEC])
    refined = stock.image(SPEC, refine=True)
    alone = stock.image(replace(SPEC, handoff=1.0))
    assert np.abs(picture.astype(np.int16) - refined).max() <= LEVELS
    assert np.abs(picture.astype(np.int16) - alone).max() > 5 * LEVELS


def test_an_init_image_is_continued_as_stock_does(
    pipeline: LocalPipeline, stock: Stock, photo: bytes
) -> None:
    spec = replace(SPEC, strength=0.5, handoff=1.0)
    (picture,) = pipeline.generate([spec], [ImageInputs(photo)])
    assert np.abs(picture.astype(np.int16) - stock.image(spec, photo)).max() <= LEVELS


def test_images_come_in_the_order_of_their_requests(pipeline: LocalPipeline) -> None:
    specs = [replace(SPEC, seed=seed, steps=steps) for seed, steps in ((1, 9), (2, 3), (3, 6))]
    together = pipeline.generate(specs)
    for spec, picture in zip(specs, together, strict=True):
        assert np.array_equal(picture, pipeline.generate([spec])[0])


def test_every_step_of_both_stages_is_reported(pipeline: LocalPipeline) -> None:
    reported: list[int] = []
    pipeline.generate([SPEC, replace(SPEC, steps=5)], on_progress=reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == 15


def test_a_prompt_that_both_stages_truncate_gives_one_warning(pipeline: LocalPipeline) -> None:
    heard: list[str] = []
    long = replace(SPEC, prompt=" BREAK ".join(["a red star"] * 34), steps=5)
    pipeline.generate([long, replace(long, seed=8)], on_warning=heard.append)
    (warning,) = heard
    assert warning.startswith("the prompt was cut after 32 chunks of 75 tokens: 6 tokens")
    pipeline.generate([replace(SPEC, steps=2)], on_warning=heard.append)
    assert len(heard) == 1


def test_a_blocked_image_raises_a_safety_block(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> None:
    pipeline = LocalPipeline([checkpoints[Stage.BASE]], cpu, images=1, safety=Refusing())
    with pytest.raises(SafetyBlock, match="refuses the picture"):
        pipeline.generate([replace(SPEC, handoff=1.0, steps=2)])


def test_on_a_card_base_and_refiner_take_turns_and_the_image_is_the_same(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> None:
    both = LocalPipeline(list(checkpoints.values()), replace(cpu, prepacked=False), images=2)
    card = SimulatedCard(torch.device("cpu"), "cpu AVX512", torch.float32, torch.float32, "sdpa", 2)
    turns = LocalPipeline(list(checkpoints.values()), card, images=2)
    assert np.array_equal(turns.generate([SPEC])[0], both.generate([SPEC])[0])
    sizes = [4 * sum(num_parameters(checkpoint).values()) for checkpoint in checkpoints.values()]
    assert max(sizes) < card.bytes["peak"] < 1.01 * max(sizes) < sum(sizes)
    assert set(turns.profiles(SPEC)) == {Stage.BASE, Stage.REFINER}
    assert set(turns.profiles(replace(SPEC, handoff=1.0))) == {Stage.BASE}
