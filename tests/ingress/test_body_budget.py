"""What requests may have in memory: bodies while they are read, images until their job ends."""

import pytest

from serve_app.core.caller import Caller
from serve_app.core.errors import Overloaded
from serve_app.ingress.access import BODY_LIMIT, OPEN_BODIES_LIMIT
from serve_app.ingress.body_budget import BodyBudget
from serve_app.ingress.http_errors import PayloadTooLarge

MIB = 2**20
ADA, BEA, CY = Caller("ada"), Caller("bea"), Caller("cy", 3.0)


class Refusals:
    """Each caller who is refused is to come back a second later than the one before."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    def __call__(self, caller: Caller) -> int:
        self.callers.append(caller)
        return len(self.callers)


def budget_of(mib: int, refusals: Refusals | None = None) -> BodyBudget:
    """Return a budget of so many MiB, for bodies of at most one."""
    return BodyBudget(MIB, mib * MIB, refusals or Refusals())


def queue_images(budget: BodyBudget, caller: Caller, number: int = 3 * MIB) -> int:
    """Queue jobs with an image each until one is refused; return how many there are."""
    for jobs in range(1000):
        with budget.open_share(caller) as share:
            share.add(1000)
            try:
                share.add_image(number)
            except Overloaded:
                return jobs
            share.release()
            share.hold_images()
    raise AssertionError("there is no bound")


def test_bodies_and_images_have_one_budget() -> None:
    refusals = Refusals()
    budget = budget_of(4, refusals)
    with budget.open_share(ADA) as ada, budget.open_share(BEA) as bea:
        ada.add(MIB)
        ada.add_image(2 * MIB)
        assert budget.bytes == 3 * MIB
        with pytest.raises(Overloaded, match="input images") as refused:
            bea.add_image(2 * MIB)
        with budget.open_share(ADA) as more, pytest.raises(Overloaded, match="bodies") as later:
            more.announce(MIB)
        assert (refused.value.retry_after, later.value.retry_after) == (1, 2)
        bea.add(MIB)
        assert budget.bytes == 4 * MIB
        ada.release()
        bea.add_image(MIB // 2)
    assert budget.bytes == 0
    assert refusals.callers == [BEA, ADA]


def test_one_caller_s_queued_images_leave_room_for_everybody_else() -> None:
    """The images are of a megapixel, and the budget is that of the settings."""
    budget = BodyBudget(BODY_LIMIT, OPEN_BODIES_LIMIT, Refusals())
    assert queue_images(budget, ADA) == 96
    with budget.open_share(BEA) as bea:
        bea.announce(BODY_LIMIT)
        bea.add(BODY_LIMIT)
        bea.add_image(16 * 3 * MIB)
    assert queue_images(budget, BEA) == 16  # half of the last quarter
    assert queue_images(budget, CY) == 16  # what there is
    assert queue_images(budget, ADA) == 0


def test_images_that_wait_leave_room_for_bodies() -> None:
    budget = BodyBudget(BODY_LIMIT, OPEN_BODIES_LIMIT, Refusals())
    for caller in range(100):
        queue_images(budget, Caller(f"caller {caller}"))
    assert budget.images.total() == 384 * MIB
    with budget.open_share(ADA) as ada:
        ada.announce(BODY_LIMIT)
        ada.add(BODY_LIMIT)


def test_one_caller_s_large_bodies_leave_room_for_everybody_else() -> None:
    budget = budget_of(16)
    shares = [budget.open_share(ADA) for _ in range(12)]
    for share in shares:
        share.__enter__().add(MIB)
    with (
        budget.open_share(ADA) as ada,
        budget.open_share(BEA) as bea,
        budget.open_share(CY) as cy,
    ):
        with pytest.raises(Overloaded, match="bodies"):
            ada.announce(MIB)
        with pytest.raises(Overloaded, match="images"):
            ada.add_image(1)
        bea.add(MIB)
        bea.add_image(MIB)
        cy.add(MIB)


def test_a_body_that_grows_is_judged_as_a_whole() -> None:
    """It goes on although it alone is more than its caller's share of the last quarter."""
    budget = budget_of(4)
    callers = [Caller(f"caller {number}") for number in range(8)]
    for caller in callers:
        with budget.open_share(caller) as share:
            share.add_image(MIB // 4)
            share.hold_images()
    with budget.open_share(ADA) as ada:
        ada.announce(MIB)
        for _ in range(16):
            ada.add(MIB // 16)


def test_there_is_always_room_for_a_small_body() -> None:
    budget = budget_of(2)
    with budget.open_share(ADA) as ada, budget.open_share(BEA) as bea:
        ada.add(MIB)
        bea.add(MIB)
        with budget.open_share(CY) as cy:
            cy.announce(1000)
            cy.add(1000)
            with pytest.raises(Overloaded):
                cy.add(MIB // 2)
            assert budget.bytes == 2 * MIB


def test_a_body_over_the_limit_is_refused_whatever_room_there_is() -> None:
    budget = budget_of(2)
    with budget.open_share(ADA) as share:
        with pytest.raises(PayloadTooLarge):
            share.announce(MIB + 1)
        with pytest.raises(PayloadTooLarge):
            share.add(MIB + 1)
        assert budget.bytes == 0


def test_images_are_counted_until_their_job_gives_them_back() -> None:
    budget = budget_of(2)
    with budget.open_share(ADA) as share:
        share.add_image(3000)
        share.give_back(1000)
        share.add(500)
        give_back = share.hold_images()
        assert budget.bytes == 2500
    assert budget.bytes == 2000
    give_back()
    assert budget.bytes == 0


def test_a_request_that_is_alone_may_have_images_of_any_size() -> None:
    budget = budget_of(2)
    with budget.open_share(ADA) as ada, budget.open_share(BEA) as bea:
        ada.add(1000)
        ada.add_image(3 * MIB)
        ada.add_image(3 * MIB)
        with pytest.raises(Overloaded):
            bea.add_image(1)
        bea.add(MIB // 2)
