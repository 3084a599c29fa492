"""Addresses of this machine, found and tried on its own interfaces."""

import errno
import socket

import pytest

from serve_app.config.network import (
    bind_error,
    is_loopback,
    machine_addresses,
    machine_names,
    netloc,
    reachable_addresses,
)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("pictures.example", False),
    ],
)
def test_a_loopback_address_is_one_that_no_other_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_names_of_this_machine_have_no_domain_but_its_own_and_local() -> None:
    name, *others = machine_names()
    assert name == socket.gethostname().lower()
    short = name.partition(".")[0]
    assert {name, *others} == {name, short, f"{short}.local"}


def test_other_machines_reach_all_addresses_but_loopback() -> None:
    addresses = machine_addresses()
    assert "127.0.0.1" in addresses
    assert reachable_addresses("127.0.0.1") == ()
    assert reachable_addresses("192.168.1.5") == ("192.168.1.5",)
    found = reachable_addresses("0.0.0.0")
    assert set(found) < set(addresses)
    assert not [address for address in found if is_loopback(address) or ":" in address]
    assert set(found) <= set(reachable_addresses("::"))


def test_an_ipv6_address_has_brackets_in_a_url() -> None:
    assert netloc("10.0.0.1", 80) == "10.0.0.1:80"
    assert netloc("fd00::1", 80) == "[fd00::1]:80"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_server_can_listen_on_a_free_port_alone(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        error = bind_error(host, port)
        assert error is not None
        assert error.errno == errno.EADDRINUSE
    assert bind_error(host, port) is None


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7", "nowhere.invalid"])
def test_a_server_can_not_listen_on_an_address_of_another_machine(host: str) -> None:
    assert isinstance(bind_error(host, 4000), OSError)
