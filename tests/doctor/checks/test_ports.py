"""Ports that are really taken or open, and a Ray that really answers or does not."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serve_app.doctor.checks import ray_cluster as cluster
from serve_app.doctor.run import Probes
from tests.doctor.conftest import wrong
from tests.support.setups import SetUp


@pytest.fixture
def taken(setup: SetUp) -> Iterator[socket.socket]:
    """Somebody listens on the service's port."""
    with closing(socket.create_server(("127.0.0.1", setup.port))) as listening:
        yield listening


def test_a_port_in_use_is_told_with_one_that_is_free(
    setup: SetUp, grounds: Probes, taken: socket.socket
) -> None:
    ((check, verdict, said, mend),) = wrong(grounds)
    assert (check, verdict) == ("port", "FAIL")
    assert said == f"BACKEND_PORT={setup.port} can't be used on 127.0.0.1 (Address already in use)"
    free = int(mend.removeprefix("BACKEND_PORT=").removesuffix(" aura up"))
    with socket.create_server(("127.0.0.1", free)):
        assert free > setup.port


class Answering(BaseHTTPRequestHandler):
    """Answers every GET as the server's `status` and `content` say."""

    server: "Answers"

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: object) -> None: ...


class Answers(ThreadingHTTPServer):
    """An HTTP server with one answer."""

    status = 200
    content = b'{"status":"alive"}'


@pytest.fixture
def serving() -> Iterator[Callable[[str, int], Answers]]:
    """Starts servers of one answer, and ends them."""
    servers: list[Answers] = []

    def serve(host: str, port: int) -> Answers:
        server = Answers((host, port), Answering)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_service_itself_on_its_port_is_no_failure(
    setup: SetUp, grounds: Probes, serving: Callable[[str, int], Answers]
) -> None:
    serving("127.0.0.1", setup.port)
    ((check, verdict, said, mend),) = wrong(grounds)
    assert (check, verdict) == ("port", "WARN")
    assert said == (
        f"Aura Serve runs on 127.0.0.1:{setup.port} already: a second one needs another port"
    )
    assert mend.endswith(" aura up")


def test_a_ray_dashboard_open_to_all_is_found_unless_it_asks_for_a_token(
    grounds: Probes, serving: Callable[[str, int], Answers]
) -> None:
    server = serving("0.0.0.0", 0)
    port = server.server_port
    exposed = replace(grounds, cluster=lambda: cluster.probe({port: "dashboard"}))
    assert wrong(exposed) == [
        (
            "ray ports",
            "FAIL",
            f"other machines reach Ray's dashboard on 0.0.0.0:{port} without a token, and may run "
            "code here",
            "ray stop && ray get-auth-token --generate > /dev/null && RAY_AUTH_MODE=token ray "
            "start --head --dashboard-host=127.0.0.1",
        )
    ]
    server.status = 401
    assert wrong(exposed) == []


def test_a_ray_dashboard_for_this_machine_alone_is_no_trouble(
    grounds: Probes, serving: Callable[[str, int], Answers]
) -> None:
    port = serving("127.0.0.1", 0).server_port
    assert wrong(replace(grounds, cluster=lambda: cluster.probe({port: "dashboard"}))) == []


def test_a_cluster_that_runs_here_is_told_since_the_service_would_join_it(
    setup: SetUp, grounds: Probes
) -> None:
    home = setup.folder.parent / "ray"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        (home / "ray_current_cluster").write_text(address)
        assert wrong(grounds) == [
            (
                "ray",
                "WARN",
                f"a cluster runs at {address}, and the service would join it: this shell's "
                "environment would not reach its replicas",
                "RAY_ADDRESS=local aura up",
            )
        ]
        setup.export(RAY_ADDRESS="local")
        assert wrong(grounds) == []
        setup.export(RAY_ADDRESS="auto")
        assert wrong(grounds) == []
    setup.export(RAY_ADDRESS="")
    assert wrong(grounds) == []  # it is gone
