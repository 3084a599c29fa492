"""What listens: the kernel's tables, read from lines and from this machine."""

import socket
import sys

import pytest

from serve_app.doctor.checks.ports import Listener, listeners, read_table
from serve_app.doctor.checks.ray_cluster import Cluster, check_exposure
from serve_app.doctor.finding import Finding, fail, fine, skip

LINES = """\
   0: 0100007F:2049 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1
   1: 00000000:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 2 1
   2: 0500A8C0:2711 0600A8C0:B1C2 01 00000000:00000000 00:00000000 00000000 0 0 3 1
""".splitlines()
LINES_6 = """\
   0: 00000000000000000000000000000000:0FA0 00000000000000000000000000000000:0000 0A 0:0 0 0 0 0 1 1
   1: 0000000000000000FFFF00000100007F:0FA1 00000000000000000000000000000000:0000 0A 0:0 0 0 0 0 1 1
   2: 00000000000000000000000001000000:0FA2 00000000000000000000000000000000:0000 0A 0:0 0 0 0 0 1 1
""".splitlines()


@pytest.mark.skipif(sys.byteorder != "little", reason="the lines are of such a machine")
def test_the_kernel_s_tables_are_read() -> None:
    assert read_table(LINES) == {Listener("127.0.0.1", 8265), Listener("0.0.0.0", 6379)}
    assert read_table(LINES_6) == {
        Listener("::", 4000),
        Listener("127.0.0.1", 4001),
        Listener("::1", 4002),
    }
    assert {one.port for one in read_table(LINES + LINES_6) if one.is_open} == {6379, 4000}


@pytest.mark.skipif(sys.platform != "linux", reason="no such tables")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_socket_that_listens_is_seen(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listening:
        seen = listeners()
        assert seen is not None
        assert Listener(address, listening.getsockname()[1]) in seen
    assert Listener(address, 0) not in seen


OPEN = (("GCS", Listener("0.0.0.0", 6379)), ("client", Listener("::", 10001)))
RESTART = (
    "ray stop && ray get-auth-token --generate > /dev/null && RAY_AUTH_MODE=token ray start "
    "--head --dashboard-host=127.0.0.1"
)


def cluster(
    exposed: tuple[tuple[str, Listener], ...] | None, mode: str = "", guarded: bool | None = None
) -> Cluster:
    return Cluster("", False, False, mode, exposed, guarded)


@pytest.mark.parametrize(
    ("seen", "finding"),
    [
        (cluster(()), fine("ray ports", "none is open to other machines")),
        (cluster(None), skip("ray ports", "which ports listen can't be told on this system")),
        (
            cluster(OPEN),
            fail(
                "ray ports",
                "other machines reach Ray's GCS on 0.0.0.0:6379, client on :::10001 without a "
                "token, and may run code here",
                RESTART,
            ),
        ),
        (
            cluster(OPEN, "token"),
            fine(
                "ray ports",
                "other machines reach Ray's GCS on 0.0.0.0:6379, client on :::10001, which asks "
                "for a token",
            ),
        ),
        (
            cluster(OPEN[:1], "token", guarded=False),
            fail(
                "ray ports",
                "other machines reach Ray's GCS on 0.0.0.0:6379 without a token, and may run code "
                "here",
                RESTART,
            ),
        ),
    ],
)
def test_a_token_counts_by_what_the_dashboard_does_then_by_the_setting(
    seen: Cluster, finding: Finding
) -> None:
    assert check_exposure(seen) == finding
