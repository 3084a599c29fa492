"""What requests may have in memory: bodies while they are read, images until their job ends."""

import pytest

from serve_app.core.errors import Overloaded
from serve_app.ingress.body_budget import BodyBudget
from serve_app.ingress.http_errors import PayloadTooLarge

MIB = 2**20


class Refusals:
    """Each caller who is refused is to come back a second later than the one before."""

    def __init__(self) -> None:
        self.callers: list[str] = []

    def __call__(self, caller: str) -> int:
        self.callers.append(caller)
        return len(self.callers)


def test_bodies_and_images_have_one_budget() -> None:
    refusals = Refusals()
    budget = BodyBudget(MIB, 2 * MIB, refusals)
    with budget.open_share("ada") as ada, budget.open_share("bea") as bea:
        ada.add(MIB)
        ada.add_image(MIB)
        assert budget.bytes == 2 * MIB
        with pytest.raises(Overloaded, match="input images") as refused:
            bea.add_image(1)
        with pytest.raises(Overloaded, match="bodies") as later:
            bea.announce(MIB)
        assert (refused.value.retry_after, later.value.retry_after) == (1, 2)
        bea.add(1000)  # there is always room for a small body
        with pytest.raises(Overloaded):
            bea.add(MIB // 2)
        assert budget.bytes == 2 * MIB
        ada.release()
        bea.add(MIB)
    assert budget.bytes == 0
    assert refusals.callers == ["bea"] * 3


def test_a_body_over_the_limit_is_refused_whatever_room_there_is() -> None:
    budget = BodyBudget(MIB, 2 * MIB, Refusals())
    with budget.open_share("ada") as share:
        with pytest.raises(PayloadTooLarge):
            share.announce(MIB + 1)
        with pytest.raises(PayloadTooLarge):
            share.add(MIB + 1)
        assert budget.bytes == 0


def test_images_are_counted_until_their_job_gives_them_back() -> None:
    budget = BodyBudget(MIB, 2 * MIB, Refusals())
    with budget.open_share("ada") as share:
        share.add_image(3000)
        share.give_back(1000)
        share.add(500)
        give_back = share.hold_images()
        assert budget.bytes == 2500
    assert budget.bytes == 2000
    give_back()
    assert budget.bytes == 0


def test_a_request_that_is_alone_may_have_images_of_any_size() -> None:
    budget = BodyBudget(MIB, MIB, Refusals())
    with budget.open_share("ada") as ada, budget.open_share("bea") as bea:
        ada.add(1000)
        ada.add_image(3 * MIB)
        ada.add_image(3 * MIB)
        with pytest.raises(Overloaded):
            bea.add_image(1)
