"""Ports that are really listened on, and a service port that is really taken."""

import socket
import sys

import pytest

from serve_app.doctor.checks.ports import Listener, find_listeners
from serve_app.doctor.run import Probes
from tests.support.machines import problems
from tests.support.setups import SetUp
from tests.support.static_server import static_server

only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems show listeners to their administrator only"
)


@only_linux
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_listening_socket_is_found_until_it_is_closed(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        listener = Listener(address, server.getsockname()[1])
        assert listener in (find_listeners() or ())
    assert listener not in (find_listeners() or ())


@only_linux
def test_an_ipv4_address_of_an_ipv6_socket_is_written_as_ipv4() -> None:
    with socket.socket(socket.AF_INET6) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::ffff:127.0.0.1", 0))
        server.listen()
        listener = Listener("127.0.0.1", server.getsockname()[1])
        assert listener in (find_listeners() or ())


@only_linux
def test_a_connected_socket_is_not_a_listener() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
    ):
        assert Listener("127.0.0.1", client.getsockname()[1]) not in (find_listeners() or ())


@pytest.mark.parametrize(
    ("address", "is_public"),
    [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True), ("10.0.0.7", True)],
)
def test_a_listener_is_public_unless_its_address_is_loopback(address: str, is_public: bool) -> None:
    assert Listener(address, 80).is_public is is_public


def test_a_taken_port_is_reported_with_a_free_one(setup: SetUp, probes: Probes) -> None:
    with socket.create_server(("127.0.0.1", setup.port)):
        ((check, verdict, message, fix),) = problems(probes)
    assert (check, verdict) == ("port", "FAIL")
    assert message == (
        f"BACKEND_PORT={setup.port} can't be used on 127.0.0.1 (Address already in use)"
    )
    free = int(fix.removeprefix("BACKEND_PORT=").removesuffix(" aura up"))
    with socket.create_server(("127.0.0.1", free)):
        assert free > setup.port


def test_the_service_itself_on_its_port_is_a_warning(setup: SetUp, probes: Probes) -> None:
    with static_server("127.0.0.1", setup.port):
        ((check, verdict, message, fix),) = problems(probes)
    assert (check, verdict) == ("port", "WARN")
    assert message == (
        f"Aura Serve already runs on 127.0.0.1:{setup.port}: a second one needs another port"
    )
    assert fix.endswith(" aura up")


def test_a_taken_metrics_port_is_reported_with_a_free_one(setup: SetUp, probes: Probes) -> None:
    with static_server("127.0.0.1") as server:
        taken = server.server_port
        setup.export(METRICS_PORT=taken)
        ((check, verdict, message, fix),) = problems(probes)
        assert (check, verdict) == ("metrics port", "FAIL")
        assert message == f"METRICS_PORT={taken} can't be used (Address already in use)"
        assert fix.startswith("METRICS_PORT=")
        assert fix.endswith(" aura up")
        server.content = b"# HELP ray_node_cpu_count Total CPUs"
        ((check, verdict, message, fix),) = problems(probes)
        assert (check, verdict) == ("metrics port", "WARN")
        assert message == f"METRICS_PORT={taken} shows the metrics of a service that runs already"
