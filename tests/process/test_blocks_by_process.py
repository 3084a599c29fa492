"""Which processes of the service give large blocks back, and which keep them."""

import ctypes
import multiprocessing
import platform
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
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


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[Executor]:
    """Start a process whose heap has no holes: these may be large after tests of networks."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


def goes_back() -> bool:
    """Return whether a block that no hole of the heap can take has pages of its own.

    The second bit of the size that stands before a block says so (glibc, malloc.c: IS_MMAPPED).
    """
    allocator.trim()
    block = bytes(2**24)
    size = ctypes.c_size_t.from_address(id(block) - ctypes.sizeof(ctypes.c_size_t))
    return bool(size.value & 2)


def open_replica() -> tuple[bool, bool]:
    """Return what `goes_back` returns before and after a replica was opened."""
    allocator.give_back_large_blocks()
    before = goes_back()
    models = ModelCache.of(analytic_model(ConstantDenoiser()))
    config = cpu_stage([ModelSource("demo", Path())], device="cpu")
    StageReplica(config, load=lambda _: models).close()
    return before, goes_back()


def open_an_ingress() -> tuple[bool, bool]:
    """Return what `goes_back` returns before and after an ingress was opened."""
    allocator.keep_large_blocks()
    before = goes_back()
    config = HttpConfig(info=INFO, access_policy=AccessPolicy())
    open_ingress(config, FakeConductor(), Ledger(None), InMemoryMeter(), cancel_nowhere)
    return before, goes_back()


@pytest.mark.long
def test_a_replica_keeps_them(fresh_process: Executor) -> None:
    assert fresh_process.submit(open_replica).result() == (True, False)


def test_an_ingress_gives_them_back(fresh_process: Executor) -> None:
    assert fresh_process.submit(open_an_ingress).result() == (False, True)


async def cancel_nowhere(job: str) -> None:
    """Cancel nothing."""
