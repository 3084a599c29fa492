"""`aura up` while it waits: for nodes that may join a cluster, and for replicas that die."""

import multiprocessing
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support import ray_nodes as nodes
from tests.support.running_up import RunningUp, running

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

ONE_GPU_CONFIG = Path(__file__).parents[2] / "configs" / "one-gpu-12gb.yaml"
WAITING = (
    "waiting: BaseAndRefiner: 1 replica needs 1 GPU and 0.1 CPU, and Ray has 0 GPU and 2 CPU on 1 "
    "node"
)


@pytest.fixture
def joined(environment: dict[str, str]) -> Iterator[tuple[dict[str, str], ProcessPoolExecutor]]:
    """Start a cluster without a GPU; return the environment that joins it, and its process."""
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="aura-", dir="/tmp") as home,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", home)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all at the loopback address
        patch.setenv("RAY_enable_metrics_collection", "0")
        with ProcessPoolExecutor(1, spawn) as process:
            address = process.submit(nodes.start_bare).result(120)
            joining = {
                **environment,
                "RAY_TMPDIR": home,
                "RAY_ADDRESS": address,
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_enable_metrics_collection": "0",
                "MODEL_DEVICE": "cpu",
            }
            try:
                yield joining, process
            finally:
                process.submit(nodes.stop).result(120)


def test_up_says_for_which_nodes_it_waits_and_starts_when_they_join(
    joined: tuple[dict[str, str], ProcessPoolExecutor], tmp_path: Path
) -> None:
    environment, process = joined
    with RunningUp(environment, tmp_path, "--config", str(ONE_GPU_CONFIG)) as up:
        up.wait_for(lambda: up.stderr.count(WAITING) == 2)  # at once, and after 15 s
        process.submit(nodes.add).result(60)
        up.wait_ready()
        up.terminate()
        assert up.process.wait(90) == 0
        assert up.stderr.splitlines()[-2] == "stopped"


def test_ctrl_c_ends_the_wait_within_seconds(
    joined: tuple[dict[str, str], ProcessPoolExecutor], tmp_path: Path
) -> None:
    environment, _ = joined
    with RunningUp(environment, tmp_path, "--config", str(ONE_GPU_CONFIG)) as up:
        up.wait_for(lambda: WAITING in up.stderr)
        session = up.session()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(20) == 0
        assert running(session) == []
        assert up.stderr.splitlines()[-2] == "stopped"


def test_ctrl_c_ends_a_start_of_ray_within_seconds(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with RunningUp(environment, tmp_path) as up:
        up.wait_for(lambda: any("gcs_server" in process.name() for process in up.session()))
        session = up.session()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(20) == 0
        assert running(session) == []
        assert up.stderr.splitlines()[-2] == "stopped"


def test_a_replica_that_is_killed_again_and_again_is_named_with_the_reason(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with RunningUp(environment, tmp_path) as up:
        while up.process.poll() is None:
            for process in up.session():
                try:
                    if "ray::ServeReplica:aura:Refiner" in "".join(process.cmdline()):
                        process.kill()
                except psutil.Error:
                    continue
            try:
                up.process.wait(0.2)
            except psutil.TimeoutExpired:
                continue
        assert up.process.wait() == 1
        (error,) = [line for line in up.stderr.splitlines() if line.startswith("error")]
        assert error.startswith("error Refiner could not start: ")
        assert "Failed to update" not in up.stderr
