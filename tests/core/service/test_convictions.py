"""Images that have killed replicas are refused for a while, and so are callers with several."""

from dataclasses import replace

import pytest

from serve_app.core.caller import Caller
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.errors import ImageKillsReplica, RateLimited
from serve_app.core.service.convictions import MAX_KEPT, REFUSED_S, STRIKES, Conviction, Convictions

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=4, guidance=5)
BAD, GOOD = Caller("bad"), Caller("good")


def test_a_convicted_image_is_refused_for_ten_minutes_whoever_sends_it() -> None:
    convictions = Convictions()
    convictions.check(SPEC, NO_INPUTS, BAD, 0.0)
    convictions.add(Conviction.of(SPEC, NO_INPUTS, BAD), 0.0)
    for caller in (BAD, GOOD):
        with pytest.raises(ImageKillsReplica):
            convictions.check(SPEC, NO_INPUTS, caller, REFUSED_S - 1)
    convictions.check(SPEC, NO_INPUTS, GOOD, REFUSED_S)


def test_another_image_of_the_caller_is_made() -> None:
    convictions = Convictions()
    convictions.add(Conviction.of(SPEC, NO_INPUTS, BAD), 0.0)
    convictions.check(replace(SPEC, seed=2), NO_INPUTS, BAD, 1.0)
    convictions.check(SPEC, ImageInputs(b"rgb"), BAD, 1.0)


def test_an_image_without_a_seed_of_its_own_is_refused_with_whatever_seed_is_drawn() -> None:
    convictions, retry = Convictions(), replace(SPEC, seed=2)
    convictions.add(Conviction.of(SPEC, NO_INPUTS, BAD, has_drawn_seed=True), 0.0)
    with pytest.raises(ImageKillsReplica):
        convictions.check(retry, NO_INPUTS, BAD, 1.0, has_drawn_seed=True)
    with pytest.raises(ImageKillsReplica):
        convictions.check(SPEC, NO_INPUTS, BAD, 1.0)
    convictions.check(retry, NO_INPUTS, BAD, 1.0)  # who names another seed may try it
    convictions.check(replace(retry, steps=9), NO_INPUTS, BAD, 1.0, has_drawn_seed=True)


def test_the_seed_of_a_caller_says_nothing_of_those_that_are_drawn() -> None:
    convictions = Convictions()
    convictions.add(Conviction.of(SPEC, NO_INPUTS, BAD), 0.0)
    convictions.check(replace(SPEC, seed=2), NO_INPUTS, GOOD, 1.0, has_drawn_seed=True)


def test_three_convictions_within_an_hour_refuse_the_caller_for_ten_minutes() -> None:
    convictions = Convictions()
    for number in range(STRIKES):
        convictions.check(replace(SPEC, steps=9), NO_INPUTS, BAD, 100.0 * number)
        convictions.add(Conviction.of(replace(SPEC, seed=number), NO_INPUTS, BAD), 100.0 * number)
    other = replace(SPEC, steps=9)
    with pytest.raises(RateLimited) as refusal:
        convictions.check(other, NO_INPUTS, BAD, 300.0)
    assert refusal.value.seconds == REFUSED_S - 100.0
    assert "several of your images" in str(refusal.value)
    convictions.check(other, NO_INPUTS, GOOD, 300.0)
    convictions.check(other, NO_INPUTS, BAD, 200.0 + REFUSED_S)


def test_strikes_that_lie_further_apart_refuse_no_caller() -> None:
    convictions = Convictions()
    for number in range(STRIKES):
        convictions.add(Conviction.of(replace(SPEC, seed=number), NO_INPUTS, BAD), 2000.0 * number)
    convictions.check(replace(SPEC, steps=9), NO_INPUTS, BAD, 4001.0)


def test_the_oldest_convictions_are_forgotten_first() -> None:
    convictions = Convictions()
    for number in range(MAX_KEPT + 1):
        convictions.add(
            Conviction.of(replace(SPEC, seed=number), NO_INPUTS, Caller(str(number))), 0.0
        )
    convictions.check(replace(SPEC, seed=0), NO_INPUTS, GOOD, 1.0)
    with pytest.raises(ImageKillsReplica):
        convictions.check(replace(SPEC, seed=1), NO_INPUTS, GOOD, 1.0)
