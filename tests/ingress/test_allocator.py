"""Memory that was freed goes back to the system, which glibc by itself keeps."""

import json
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json
import resource
import sys
from pathlib import Path
from serve_app.ingress import allocator

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def use(size, number):
    '''Fill and free blocks, each below one that stays; return their MiB, and what is left.'''
    before, blocks = held(), []
    for _ in range(number):
        blocks.append(b"x" * size)
        stays.append(b"y" * 1000)
    filled = held() - before
    del blocks
    return filled, held() - before

stays = []
if sys.argv[1] == "set":
    allocator.give_back_large_blocks()
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


def measured(*, is_set: bool) -> tuple[float, float, float, float]:
    """Return MiB: of large and of smaller blocks, how much stays, and what a trim gives back."""
    run = [sys.executable, "-c", PROGRAM, "set" if is_set else ""]
    output = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    large, large_left, small_left, trimmed = json.loads(output)
    return large, large_left, small_left, trimmed


def test_large_blocks_go_back_when_they_are_freed_and_smaller_ones_when_trimmed() -> None:
    large, large_left, small_left, trimmed = measured(is_set=True)
    assert large > 60
    assert large_left < 4
    assert small_left > 55
    assert trimmed > 55


def test_by_itself_the_allocator_keeps_large_blocks() -> None:
    large, large_left, *_ = measured(is_set=False)
    assert large > 60
    assert large_left > 60
