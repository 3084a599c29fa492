"""Tensors of many megabytes lie in large pages, in whatever order things are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PAGE_FAULTS = """
import resource
import threading
{imports}
from serve_app.runtime.memory.device import open_device
import serve_app.runtime.build
import torch

def fault():
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB, which a thread's own heap can't hold
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)

open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)
thread = threading.Thread(target=fault)
thread.start()
thread.join()
"""
_SMALL_PAGES = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.skipif(
    not _ENABLED.exists() or "[madvise]" not in _ENABLED.read_text(),
    reason="this system does not give large pages to those who ask, and to nobody else",
)


def page_faults(imports: str = "", **environ: str) -> int:
    """How many page faults four tensors of 64 MiB cost in a process that began with `imports`."""
    script = _PAGE_FAULTS.format(imports=imports)
    environ = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | environ
    run = [sys.executable, "-c", script]
    return int(subprocess.run(run, env=environ, capture_output=True, check=True).stdout)


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param("import torch", marks=pytest.mark.long),
        "import serve_app.deployments.stage_replica",
    ],
)
def test_large_tensors_take_a_twentieth_of_the_page_faults(imports: str) -> None:
    assert page_faults(imports) < _SMALL_PAGES / 20


@pytest.mark.long
def test_the_operator_can_have_it_otherwise() -> None:
    assert page_faults(THP_MEM_ALLOC_ENABLE="0") > _SMALL_PAGES / 2
