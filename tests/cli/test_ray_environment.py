"""What `aura up` puts into the environment of the Ray that it starts."""

import re
from pathlib import Path

import pytest

from serve_app.cli.ray_environment import memory_environment, ray_environment
from serve_app.config.settings import Settings
from serve_app.process import allocator
from tests.support.shipped_configs import MANIFEST

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


def test_the_allocator_is_set_before_ray_starts() -> None:
    environment = ray_environment(Settings(), {})
    assert allocator.environment({}).items() <= environment.items()


def test_a_body_of_the_largest_size_needs_no_room_in_the_object_store() -> None:
    environment = ray_environment(Settings(max_body_mib=8), {})
    for name in ("RAY_max_direct_call_object_size", "RAY_task_rpc_inlined_bytes_limit"):
        assert 8 * 2**20 < int(environment[name]) <= 9 * 2**20


def test_what_the_operator_has_set_stands() -> None:
    operators = {
        "MALLOC_ARENA_MAX": "8",
        "RAY_max_direct_call_object_size": "1000",
        "RAY_enable_metrics_collection": "1",
        "PATH": "/bin",
    }
    environment = ray_environment(Settings(), operators)
    assert operators.items() <= environment.items()
    assert (
        environment["MALLOC_MMAP_THRESHOLD_"] == allocator.environment({})["MALLOC_MMAP_THRESHOLD_"]
    )


def test_one_card_is_chosen_for_ray_and_its_replicas_find_it() -> None:
    environment = ray_environment(Settings(model_device="cuda:2"), {"MODEL_DEVICE": "cuda:2"})
    assert environment["CUDA_VISIBLE_DEVICES"] == "2"
    assert environment["MODEL_DEVICE"] == environment["AURA_MODEL_DEVICE"] == "cuda"


def test_without_a_port_for_metrics_ray_collects_none() -> None:
    assert ray_environment(Settings(), {})["RAY_enable_metrics_collection"] == "0"
    with_port = ray_environment(Settings(metrics_port=9000), {})
    assert "RAY_enable_metrics_collection" not in with_port


@pytest.mark.parametrize("file", [OPERATIONS, MANIFEST], ids=lambda file: file.name)
def test_where_aura_up_does_not_start_ray_the_same_is_written_down(file: Path) -> None:
    text = file.read_text()
    for name, value in memory_environment(Settings().max_body_mib, {}).items():
        assert re.search(rf'{name}(=|, value: "){value}\b', text), name
