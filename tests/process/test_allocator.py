"""Memory that was freed goes back to the system, which glibc by itself keeps."""

import json
import os
import platform
import subprocess
import sys
from typing import NamedTuple

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
b"x" * 2**23  # from here on, glibc takes blocks of this size from its heap
large = use(2**23, 9)  # one may take the place of that first block
_, picture_left = use(2**21, 32)
_, small_left = use(200_000, 320)
before = held()
allocator.trim()
print(json.dumps([*large, picture_left, small_left, before - held()]))
"""


pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="elsewhere the functions do nothing"
)


class Left(NamedTuple):
    """MiB that stay of blocks that were freed."""

    filled: float  # by the large ones, of 8 MiB
    large: float
    picture: float  # of 2 MiB
    small: float
    trimmed: float  # what a trim gives back


def measured(call: str = "", **environ: str) -> Left:
    run = [sys.executable, "-c", PROGRAM, call]
    base = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(run, check=True, capture_output=True, text=True, env=base | environ)
    return Left(*json.loads(output.stdout))


def test_large_blocks_go_back_when_they_are_freed_and_smaller_ones_when_trimmed() -> None:
    left = measured(**allocator.environment({}))
    assert left.filled > 60
    assert left.large < 4
    assert left.picture < 4
    assert left.small > 55
    assert left.trimmed > 55


@pytest.mark.parametrize("environ", [{}, allocator.environment({})])
def test_an_ingress_keeps_blocks_of_a_picture_until_a_trim(environ: dict[str, str]) -> None:
    left = measured("give_back_large_blocks", **environ)
    assert left.filled > 60
    assert left.large < 4
    assert left.picture > 45
    assert left.trimmed > 55


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
    left = measured(call, **environ)
    assert left.filled > 60
    assert left.large > 60


def test_a_replica_gives_large_blocks_back_if_the_operator_says_so() -> None:
    assert measured("keep_large_blocks", MALLOC_MMAP_THRESHOLD_="200000").large < 4


def test_the_environment_leaves_out_what_the_operator_has_set() -> None:
    assert set(allocator.environment({"MALLOC_ARENA_MAX": "8"})) == {
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
    }
    assert not allocator.environment({"GLIBC_TUNABLES": "glibc.malloc.arena_max=8"})
