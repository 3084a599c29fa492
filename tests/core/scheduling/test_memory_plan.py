"""What is given up for room, and in which order."""

import pytest

from serve_app.core.scheduling.memory_plan import (
    MemoryPlan,
    MemorySaving,
    first_plan_that_fits,
    halvings,
    shortfall,
    shortfalls,
)

LADDER = tuple(MemorySaving)


def tried(max_images: int, limit: int, rungs: int) -> tuple[MemoryPlan | None, list[MemoryPlan]]:
    """What fits on a device with room for `limit` images, or for one with so many rungs taken."""
    tries: list[MemoryPlan] = []

    def holds(attempt: MemoryPlan) -> bool:
        tries.append(attempt)
        return attempt.images <= limit or len(attempt.savings) >= rungs

    return first_plan_that_fits(max_images, LADDER, holds), tries


def test_what_was_requested_for_is_tried_first_and_taken_when_it_holds() -> None:
    assert tried(6, limit=6, rungs=0) == (MemoryPlan(6), [MemoryPlan(6)])


@pytest.mark.parametrize(
    ("max_images", "limit", "images"), [(6, 5, 4), (6, 3, 2), (8, 7, 4), (2, 1, 1), (3, 2, 2)]
)
def test_fewer_images_come_before_anything_is_given_up(
    max_images: int, limit: int, images: int
) -> None:
    found, _ = tried(max_images, limit, rungs=99)
    assert found == MemoryPlan(images)


@pytest.mark.parametrize("rungs", [1, 2, 3, 4])
def test_one_image_climbs_only_as_far_as_it_must(rungs: int) -> None:
    found, tries = tried(2, limit=0, rungs=rungs)
    assert found == MemoryPlan(1, LADDER[:rungs])
    assert tries == [MemoryPlan(2), *(MemoryPlan(1, LADDER[:taken]) for taken in range(rungs + 1))]


def test_a_device_on_which_nothing_holds_is_reported_from_one_on_which_something_does() -> None:
    found, tries = tried(4, limit=0, rungs=99)
    assert found is None
    assert tries[-1] == MemoryPlan(1, LADDER)


def test_a_device_that_knows_no_rungs_has_only_the_number_of_images() -> None:
    assert first_plan_that_fits(2, (), lambda attempt: attempt.images == 1) == MemoryPlan(1)
    assert first_plan_that_fits(2, (), lambda attempt: False) is None


def test_numbers_of_images_go_down_as_lanes_do() -> None:
    assert halvings(1) == (1,)
    assert halvings(6) == (6, 4, 2, 1)
    assert halvings(8) == (8, 4, 2, 1)


def test_what_there_was_no_room_for_is_stated_in_one_sentence() -> None:
    assert shortfall(2, MemoryPlan(2)) == ""
    assert shortfall(4, MemoryPlan(2)) == (
        "too little memory for 4 images at a time: now 2 images at a time"
    )
    assert shortfall(1, MemoryPlan(1, (MemorySaving.VAE_TILES, MemorySaving.TEXT_ON_CPU))) == (
        "too little memory for 1 image at a time: now 1 image at a time, vae-tiles, text-on-cpu"
    )


def test_the_shortfalls_of_several_models_are_reported_by_their_names() -> None:
    sentence = "too little memory for 4 images at a time: now 2 images at a time"
    assert shortfalls(4, {None: MemoryPlan(2)}) == sentence
    assert shortfalls(4, {"fox": MemoryPlan(4), "ink": MemoryPlan(2)}) == f"ink: {sentence}"
    assert (
        shortfalls(4, {"fox": MemoryPlan(2), "ink": MemoryPlan(2)})
        == f"fox: {sentence}; ink: {sentence}"
    )
    assert shortfalls(4, {"fox": MemoryPlan(4)}) == shortfalls(4, {}) == ""


def test_what_was_fitted_before_begins_there_and_gets_no_more_than_then() -> None:
    tries: list[MemoryPlan] = []

    def holds(attempt: MemoryPlan) -> bool:
        tries.append(attempt)
        return len(tries) == 2

    before = MemoryPlan(1, LADDER[:1])
    assert first_plan_that_fits(4, LADDER, lambda attempt: True, MemoryPlan(2)) == MemoryPlan(2)
    assert first_plan_that_fits(4, LADDER, holds, before) == MemoryPlan(1, LADDER[:2])
    assert tries == [before, MemoryPlan(1, LADDER[:2])]
    assert first_plan_that_fits(4, LADDER, lambda attempt: True, MemoryPlan(3)) == MemoryPlan(
        4
    )  # asked for anew
