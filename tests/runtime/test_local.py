"""Both stages in one process: the same pictures as stock, handed over and told of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import SafetyBlock
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, parameters
from serve_app.runtime.local import Solo
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.vae import Picture
from tests.runtime.memory.test_offload import Card
from tests.support.reference_diffusers import Stock

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
    """A filter that refuses every picture."""

    name = "pictures"

    def refuses_prompt(self, prompt: str) -> bool:
        return False

    def refuses_picture(self, picture: Picture) -> bool:
        return True


@pytest.fixture(scope="module")
def solo(checkpoints: dict[Stage, Checkpoint], cpu: Device) -> Solo:
    return Solo(list(checkpoints.values()), cpu, images=2)


def test_base_hands_over_to_the_refiner_as_stock_pipelines_do(solo: Solo, stock: Stock) -> None:
    (picture,) = solo.draw([SPEC])
    refined = stock.picture(SPEC, refine=True)
    alone = stock.picture(replace(SPEC, handoff=1.0))
    assert np.abs(picture.astype(np.int16) - refined).max() <= LEVELS
    assert np.abs(picture.astype(np.int16) - alone).max() > 5 * LEVELS


def test_a_base_image_is_gone_on_from_as_stock_does(solo: Solo, stock: Stock, photo: bytes) -> None:
    spec = replace(SPEC, strength=0.5, handoff=1.0)
    (picture,) = solo.draw([spec], [photo])
    assert np.abs(picture.astype(np.int16) - stock.picture(spec, photo)).max() <= LEVELS


def test_pictures_come_in_the_order_they_were_asked_for(solo: Solo) -> None:
    specs = [replace(SPEC, seed=seed, steps=steps) for seed, steps in ((1, 9), (2, 3), (3, 6))]
    together = solo.draw(specs)
    for spec, picture in zip(specs, together, strict=True):
        assert np.array_equal(picture, solo.draw([spec])[0])


def test_every_step_of_both_stages_is_told_of(solo: Solo) -> None:
    told: list[int] = []
    solo.draw([SPEC, replace(SPEC, steps=5)], tell=told.append)
    assert told == sorted(told)
    assert told[-1] == 15


def test_a_prompt_that_both_stages_cut_is_warned_of_once(solo: Solo) -> None:
    heard: list[str] = []
    long = replace(SPEC, prompt=" BREAK ".join(["a red star"] * 34), steps=5)
    solo.draw([long, replace(long, seed=8)], warn=heard.append)
    (warning,) = heard
    assert warning.startswith("the prompt was cut after 32 chunks of 75 tokens: 6 tokens")
    solo.draw([replace(SPEC, steps=2)], warn=heard.append)
    assert len(heard) == 1


def test_a_picture_that_may_not_be_handed_out_is_an_error_by_its_name(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> None:
    solo = Solo([checkpoints[Stage.BASE]], cpu, images=1, safety=Refusing())
    with pytest.raises(SafetyBlock, match="refuses the picture"):
        solo.draw([replace(SPEC, handoff=1.0, steps=2)])


def test_on_a_card_base_and_refiner_take_turns_and_the_picture_is_the_same(
    solo: Solo, checkpoints: dict[Stage, Checkpoint]
) -> None:
    card = Card(torch.device("cpu"), "cpu AVX512", torch.float32, torch.float32, "sdpa", 2)
    turns = Solo(list(checkpoints.values()), card, images=2)
    assert np.array_equal(turns.draw([SPEC])[0], solo.draw([SPEC])[0])
    sizes = [4 * sum(parameters(one).values()) for one in checkpoints.values()]
    assert max(sizes) < card.bytes["peak"] < 1.01 * max(sizes) < sum(sizes)
    assert set(turns.profiles(SPEC)) == {Stage.BASE, Stage.REFINER}
    assert set(turns.profiles(replace(SPEC, handoff=1.0))) == {Stage.BASE}
