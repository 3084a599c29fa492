"""Memory that was freed goes back to the system, which glibc by itself keeps."""

import json
import os
import platform
import subprocess
import sys

import pytest

from serve_app.process import allocator

PROGRAM = """
import json
import resource
import sys
from pathlib import Path
from serve_app.process import allocator

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def use(size, number):
    '''Fill and free blocks, each below one that stays; return their MiB, and what is left.'''
    before, blocks = held(), []
    for _ in range(number):
        blocks.append(b"x" * size)
        stays.append(b"y" * 20_000)  # more than a hole that an import has left
    filled = held() - before
    del blocks
    return filled, held() - before

stays = []
if sys.argv[1]:
    getattr(allocator, sys.argv[1])()
b"x" * 2**20  # from here on, glibc takes blocks of this size from its heap
large = use(2**20, 64)
_, medium = use(200_000, 320)
before = held()
allocator.trim()
print(json.dumps([*large, medium, before - held()]))
"""


pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="elsewhere the functions do nothing"
)


def measured(call: str = "", **environ: str) -> tuple[float, float, float, float]:
    """Return MiB: of large and of smaller blocks, how much stays, and what a trim gives back."""
    run = [sys.executable, "-c", PROGRAM, call]
    base = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(run, check=True, capture_output=True, text=True, env=base | environ)
    large, large_left, small_left, trimmed = json.loads(output.stdout)
    return large, large_left, small_left, trimmed


@pytest.mark.parametrize("way", ["a call", "the environment"])
def test_large_blocks_go_back_when_they_are_freed_and_smaller_ones_when_trimmed(way: str) -> None:
    if way == "a call":
        large, large_left, small_left, trimmed = measured("give_back_large_blocks")
    else:
        large, large_left, small_left, trimmed = measured(**allocator.environment({}))
    assert large > 60
    assert large_left < 4
    assert small_left > 55
    assert trimmed > 55


@pytest.mark.parametrize(
    ("call", "environ"),
    [
        ("", {}),
        ("keep_large_blocks", {}),
        ("keep_large_blocks", allocator.environment({})),  # as a replica that `aura up` started
        ("give_back_large_blocks", {"MALLOC_MMAP_THRESHOLD_": f"{2**24}"}),
        ("give_back_large_blocks", {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={2**24}"}),
    ],
)
def test_large_blocks_stay_by_themselves_where_they_are_wanted_and_where_the_operator_says_so(
    call: str, environ: dict[str, str]
) -> None:
    large, large_left, *_ = measured(call, **environ)
    assert large > 60
    assert large_left > 60


def test_a_replica_gives_large_blocks_back_if_the_operator_says_so() -> None:
    _, large_left, *_ = measured("keep_large_blocks", MALLOC_MMAP_THRESHOLD_="200000")
    assert large_left < 4


def test_the_environment_leaves_out_what_the_operator_has_set() -> None:
    assert set(allocator.environment({"MALLOC_ARENA_MAX": "8"})) == {
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
    }
    assert not allocator.environment({"GLIBC_TUNABLES": "glibc.malloc.arena_max=8"})
