"""Which processes of the service give large blocks back, and which keep them."""

import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.core.service.metrics import InMemoryMeter
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.process import allocator
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.local_stage import cpu_stage

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="elsewhere the functions do nothing"
)


@pytest.fixture(autouse=True)
def tested_process() -> Iterator[None]:
    """Leave the process as tests of networks want it."""
    yield
    allocator.keep_large_blocks()


def goes_back() -> bool:
    """Return whether a block that no hole of the heap can take has pages of its own.

    The second bit of the size that stands before a block says so (glibc, malloc.c: IS_MMAPPED).
    """
    allocator.trim()
    block = bytes(2**24)
    size = ctypes.c_size_t.from_address(id(block) - ctypes.sizeof(ctypes.c_size_t))
    return bool(size.value & 2)


def test_a_replica_keeps_them() -> None:
    allocator.give_back_large_blocks()
    assert goes_back()
    models = ModelCache.of(analytic_model(ConstantDenoiser()))
    config = cpu_stage([ModelSource("demo", Path())], device="cpu")
    StageReplica(config, load=lambda _: models).close()
    assert not goes_back()


def test_an_ingress_gives_them_back() -> None:
    allocator.keep_large_blocks()
    assert not goes_back()
    config = HttpConfig(info=INFO, access_policy=AccessPolicy())
    open_ingress(config, FakeConductor(), Ledger(None), InMemoryMeter(), cancel_nowhere)
    assert goes_back()


async def cancel_nowhere(job: str) -> None:
    """Cancel nothing."""
