"""Python's garbage collector does not stop an ingress that has hundreds of open requests."""

import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from serve_app.core.service.metrics import InMemoryMeter
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from tests.support.fake_conductor import INFO, FakeConductor

MANY = 100_000  # objects, as those of two hundred open requests


@pytest.fixture(autouse=True)
def threshold() -> Iterator[None]:
    """Leave the process as it was."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def open_one() -> None:
    """Open the HTTP side of an ingress."""
    config = HttpConfig(info=INFO, access_policy=AccessPolicy())
    open_ingress(config, FakeConductor(), Ledger(None), InMemoryMeter(), no_cancel)


async def no_cancel(job: str) -> None:
    """Cancel nothing."""


def collections_of_everything() -> int:
    """Make many objects that stay; return how often Python looked at everything meanwhile."""
    gc.collect()
    before = gc.get_stats()[2]["collections"]
    stays = [[number] for number in range(MANY)]
    assert len(stays) == MANY
    count: int = gc.get_stats()[2]["collections"] - before
    return count


def test_objects_that_stay_make_python_look_at_everything_by_default_but_not_here() -> None:
    gc.freeze()  # as Serve does after the start of a replica
    try:
        assert collections_of_everything() > 0
        open_one()
        assert collections_of_everything() == 0
    finally:
        gc.unfreeze()


class Circle:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_circles_are_found_soon_after_they_are_left() -> None:
    open_one()
    left = ref(Circle())
    assert left() is not None
    stays = [[number] for number in range(MANY)]
    assert len(stays) == MANY
    assert left() is None
