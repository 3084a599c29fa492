"""The order in which memory plans are tried."""

import pytest

from serve_app.core.scheduling.memory_plan import (
    MemoryPlan,
    MemorySaving,
    first_plan_that_fits,
    halvings,
    shortfall,
    shortfalls,
)

SAVINGS = tuple(MemorySaving)


def tried(
    max_images: int, limit: int, min_savings: int
) -> tuple[MemoryPlan | None, list[MemoryPlan]]:
    """The first plan that fits, and all that were tried.

    The device fits `limit` images, or one image with at least `min_savings` savings.
    """
    tries: list[MemoryPlan] = []

    def fits(attempt: MemoryPlan) -> bool:
        tries.append(attempt)
        return attempt.images <= limit or len(attempt.savings) >= min_savings

    return first_plan_that_fits(max_images, SAVINGS, fits), tries


def test_the_requested_plan_is_tried_first_and_taken_if_it_fits() -> None:
    assert tried(6, limit=6, min_savings=0) == (MemoryPlan(6), [MemoryPlan(6)])


@pytest.mark.parametrize(
    ("max_images", "limit", "images"), [(6, 5, 4), (6, 3, 2), (8, 7, 4), (2, 1, 1), (3, 2, 2)]
)
def test_fewer_images_are_tried_before_any_saving(max_images: int, limit: int, images: int) -> None:
    plan, _ = tried(max_images, limit, min_savings=99)
    assert plan == MemoryPlan(images)


@pytest.mark.parametrize("min_savings", [1, 2, 3, 4])
def test_one_image_applies_only_the_savings_it_needs(min_savings: int) -> None:
    plan, tries = tried(2, limit=0, min_savings=min_savings)
    assert plan == MemoryPlan(1, SAVINGS[:min_savings])
    assert tries == [
        MemoryPlan(2),
        *(MemoryPlan(1, SAVINGS[:taken]) for taken in range(min_savings + 1)),
    ]


def test_a_device_on_which_no_plan_fits_is_distinguished_from_one_that_has_a_plan() -> None:
    plan, tries = tried(4, limit=0, min_savings=99)
    assert plan is None
    assert tries[-1] == MemoryPlan(1, SAVINGS)


def test_a_device_without_savings_can_only_reduce_the_number_of_images() -> None:
    assert first_plan_that_fits(2, (), lambda attempt: attempt.images == 1) == MemoryPlan(1)
    assert first_plan_that_fits(2, (), lambda attempt: False) is None


def test_the_numbers_of_images_go_down_with_the_lanes() -> None:
    assert halvings(1) == (1,)
    assert halvings(6) == (6, 4, 2, 1)
    assert halvings(8) == (8, 4, 2, 1)


def test_a_shortfall_is_stated_in_one_sentence() -> None:
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


def test_a_reload_begins_with_its_previous_plan_and_gets_no_more() -> None:
    tries: list[MemoryPlan] = []

    def fits(attempt: MemoryPlan) -> bool:
        tries.append(attempt)
        return len(tries) == 2

    previous = MemoryPlan(1, SAVINGS[:1])
    assert first_plan_that_fits(4, SAVINGS, lambda attempt: True, MemoryPlan(2)) == MemoryPlan(2)
    assert first_plan_that_fits(4, SAVINGS, fits, previous) == MemoryPlan(1, SAVINGS[:2])
    assert tries == [previous, MemoryPlan(1, SAVINGS[:2])]
    assert first_plan_that_fits(4, SAVINGS, lambda attempt: True, MemoryPlan(3)) == MemoryPlan(
        4
    )  # requested anew
