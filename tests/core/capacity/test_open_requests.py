"""How many requests each caller may have open at a time."""

from collections import Counter

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.open_requests import has_room

ADA, BEA, CY = Caller("ada"), Caller("bea"), Caller("cy", 3.0)


def filled(*callers: Caller, limit: int = 256) -> Counter[Caller]:
    """Return the numbers open when each caller in turn has sent as much as it could."""
    open_requests: Counter[Caller] = Counter()
    for caller in callers:
        while has_room(open_requests, caller, limit):
            open_requests[caller] += 1
    return open_requests


def test_a_flood_leaves_a_quarter_to_others() -> None:
    assert filled(ADA) == {ADA: 192}
    assert filled(ADA, BEA) == {ADA: 192, BEA: 32}
    assert filled(ADA, BEA, ADA) == {ADA: 192, BEA: 32}


def test_the_last_quarter_is_shared_by_weight() -> None:
    assert filled(ADA, CY) == {ADA: 192, CY: 48}
    assert filled(CY, ADA) == {CY: 192, ADA: 16}


def test_no_more_than_the_limit_are_open() -> None:
    many = [Caller(f"caller {number}") for number in range(300)]
    assert filled(ADA, *many).total() == 256


def test_each_of_many_callers_may_have_one_beside_a_flood() -> None:
    many = {Caller(f"caller {number}"): 1 for number in range(63)}
    assert has_room({ADA: 192, **many}, BEA, 256)
    assert not has_room({ADA: 192, BEA: 1, **many}, BEA, 256)


@pytest.mark.parametrize(("limit", "alone"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 6)])
def test_small_limits_admit_at_least_one(limit: int, alone: int) -> None:
    assert filled(ADA, limit=limit) == {ADA: alone}
    assert filled(ADA, BEA, limit=limit).total() <= limit


def test_a_caller_is_known_by_its_name_whatever_its_weight_was_elsewhere() -> None:
    heavy = Caller("ada", 9.0)
    assert not has_room({ADA: 192}, heavy, 256)


def test_bytes_are_shared_as_places_are() -> None:
    """Of 1,000 bytes 750 are anybody's; a caller's first item may be larger than its share."""
    flood = {ADA: 700}
    assert has_room(flood, ADA, 1000, more=50)
    assert not has_room(flood, ADA, 1000, more=51)
    assert has_room(flood, BEA, 1000, more=300)
    assert not has_room(flood, BEA, 1000, more=301)
    assert not has_room({**flood, BEA: 125}, BEA, 1000, more=1 + 50)
    assert has_room({**flood, BEA: 124}, BEA, 1000, more=100)
