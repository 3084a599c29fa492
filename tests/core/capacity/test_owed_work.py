"""The sums of what is owed, while images come, move on and leave."""

from random import Random

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.owed_work import OwedImage, OwedWork
from serve_app.core.diffusion.spec import Stage

ADA, BEA = Caller("ada"), Caller("bea")


def image(caller: Caller, due: float, base: float, refiner: float = 0.0) -> OwedImage:
    seconds = {Stage.BASE: base} | ({Stage.REFINER: refiner} if refiner else {})
    return OwedImage(caller, due, seconds)


def test_images_add_up_by_stage_and_caller() -> None:
    owed = OwedWork(Stage)
    owed.put("a", image(ADA, 10, 3, 1))
    owed.put("b", image(ADA, 20, 5))
    owed.put("c", image(BEA, 30, 7))
    assert owed.by_caller(Stage.BASE) == {ADA: 8, BEA: 7}
    assert owed.by_caller(Stage.REFINER) == {ADA: 1}
    assert (owed.total(Stage.BASE), owed.images(Stage.BASE), owed.images(Stage.REFINER)) == (
        15,
        3,
        1,
    )
    assert len(owed) == 3
    assert set(owed.stages) == set(Stage)


def test_an_image_that_moves_on_is_counted_once() -> None:
    owed = OwedWork(Stage)
    owed.put("a", image(ADA, 10, 3, 1))
    owed.put("a", OwedImage(ADA, 10, {Stage.REFINER: 0.5}))
    assert (owed.total(Stage.BASE), owed.images(Stage.BASE)) == (0, 0)
    assert owed.total(Stage.REFINER) == 0.5


def test_nothing_is_left_of_a_caller_whose_images_have_ended() -> None:
    owed = OwedWork(Stage)
    for id in "ab":
        owed.put(id, image(ADA, 10, 0.1, 0.2))
    owed.remove("a")
    owed.remove("b")
    owed.remove("b")
    assert not owed.by_caller(Stage.BASE)
    assert not owed.by_caller(Stage.REFINER)
    assert len(owed) == 0


def test_a_caller_s_earlier_images_are_those_that_are_due_before() -> None:
    owed = OwedWork(Stage)
    owed.put("a", image(ADA, 10, 3))
    owed.put("b", image(ADA, 20, 5))
    owed.put("c", image(BEA, 5, 7))
    assert owed.earlier(Stage.BASE, ADA, 9) == 0
    assert owed.earlier(Stage.BASE, ADA, 10) == 3
    assert owed.earlier(Stage.BASE, ADA, 99) == 8
    assert owed.earlier(Stage.BASE, Caller("cat"), 99) == 0
    assert owed.earlier(Stage.REFINER, ADA, 99) == 0


def test_earlier_images_of_the_same_second_count_one_by_one() -> None:
    owed = OwedWork(Stage)
    for id, due in (("a", 10.2), ("b", 10.6), ("c", 9.9), ("d", -0.5)):
        owed.put(id, image(ADA, due, 1 + due))
    assert owed.earlier(Stage.BASE, ADA, 10.5) == pytest.approx(11.2 + 10.9 + 0.5)
    assert owed.earlier(Stage.BASE, ADA, 9.9) == pytest.approx(10.9 + 0.5)
    assert owed.earlier(Stage.BASE, ADA, -0.6) == 0


def test_earlier_images_are_those_that_a_look_at_every_image_finds() -> None:
    owed, images, random = OwedWork(Stage), dict[str, OwedImage](), Random(0)
    for step in range(600):
        id, caller = str(random.randrange(60)), random.choice((ADA, BEA))
        if random.random() < 0.3:
            owed.remove(id)
            images.pop(id, None)
        else:
            images[id] = image(caller, random.uniform(0, 9), random.random(), random.random())
            owed.put(id, images[id])
        due = random.uniform(0, 10)
        expected = sum(
            known.seconds.get(Stage.REFINER, 0.0)
            for known in images.values()
            if known.caller == ADA and known.due <= due
        )
        assert owed.earlier(Stage.REFINER, ADA, due) == pytest.approx(expected), step
