"""Ray as it is seen from outside: servers that really listen, and clusters as values."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.doctor.checks import ray_cluster
from serve_app.doctor.checks.ports import Listener
from serve_app.doctor.checks.ray_cluster import Cluster, check_exposure
from serve_app.doctor.finding import Finding, fail, fine, skip
from serve_app.doctor.run import Probes
from tests.support.machines import problems
from tests.support.setups import SetUp
from tests.support.static_server import static_server

RESTART = (
    "ray stop && ray get-auth-token --generate > /dev/null && RAY_AUTH_MODE=token ray start "
    "--head --dashboard-host=127.0.0.1"
)
PUBLIC = (("GCS", Listener("0.0.0.0", 6379)), ("client", Listener("::", 10001)))


def cluster(
    exposed: tuple[tuple[str, Listener], ...] | None,
    auth_mode: str = "",
    requires_token: bool | None = None,
) -> Cluster:
    return Cluster("", False, False, auth_mode, exposed, requires_token)


@pytest.mark.parametrize(
    ("cluster", "finding"),
    [
        (cluster(()), fine("ray ports", "other machines reach none of Ray's ports")),
        (
            cluster(None),
            skip("ray ports", "this system does not say which ports are listened on"),
        ),
        (
            cluster(PUBLIC),
            fail(
                "ray ports",
                "other machines reach Ray's GCS on 0.0.0.0:6379, client on :::10001 without a "
                "token, and can run code on this machine",
                RESTART,
            ),
        ),
        (
            cluster(PUBLIC, "token"),
            fine(
                "ray ports",
                "other machines reach Ray's GCS on 0.0.0.0:6379, client on :::10001, which require "
                "a token",
            ),
        ),
        (
            cluster(PUBLIC[:1], "token", requires_token=False),
            fail(
                "ray ports",
                "other machines reach Ray's GCS on 0.0.0.0:6379 without a token, and can run code "
                "on this machine",
                RESTART,
            ),
        ),
    ],
)
def test_the_dashboard_shows_whether_a_token_is_required_else_the_setting_does(
    cluster: Cluster, finding: Finding
) -> None:
    assert check_exposure(cluster) == finding


def test_a_public_dashboard_is_a_failure_unless_it_requires_a_token(probes: Probes) -> None:
    with static_server("0.0.0.0") as server:
        port = server.server_port
        exposed = replace(probes, cluster=lambda: ray_cluster.probe({port: "dashboard"}))
        assert problems(exposed) == [
            (
                "ray ports",
                "FAIL",
                f"other machines reach Ray's dashboard on 0.0.0.0:{port} without a token, and can "
                "run code on this machine",
                RESTART,
            )
        ]
        server.status = 401
        assert problems(exposed) == []


def test_a_dashboard_on_loopback_is_no_problem(probes: Probes) -> None:
    with static_server("127.0.0.1") as server:
        ports = {server.server_port: "dashboard"}
        assert problems(replace(probes, cluster=lambda: ray_cluster.probe(ports))) == []


def test_a_running_cluster_is_reported_because_the_service_would_join_it(
    setup: SetUp, probes: Probes
) -> None:
    folder = Path(os.environ["RAY_TMPDIR"]) / "ray"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (folder / "ray_current_cluster").write_text(address)
        assert problems(probes) == [
            (
                "ray",
                "WARN",
                f"a cluster runs at {address}, and the service would join it: environment "
                "variables of this shell would not reach its replicas",
                "RAY_ADDRESS=local aura up",
            )
        ]
        setup.export(RAY_ADDRESS="local")
        assert problems(probes) == []
        setup.export(RAY_ADDRESS="auto")
        assert problems(probes) == []
    setup.export(RAY_ADDRESS="")
    assert problems(probes) == []  # the cluster has ended
