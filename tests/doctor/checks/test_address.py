"""IMAGE_SERVICE_BASE_URL, asked on this machine; and what its response means, as values."""

import socket
from collections.abc import Mapping

import pytest

from serve_app.config.network import reachable_addresses
from serve_app.config.settings import Settings
from serve_app.doctor.checks.address import UrlResponse, check_address, check_host, probe
from serve_app.doctor.finding import Finding, fine, skip, warn
from tests.support.ports import free_port
from tests.support.static_server import static_server

THIS_MACHINE = ("127.0.0.1",)
ELSEWHERE = ("203.0.113.7",)
REFUSED = "a.example:4000: Connection refused"


def finding(
    url: str,
    response: UrlResponse,
    *,
    settings: Mapping[str, str] = {},
    http: Mapping[str, str] = {},
    is_running: bool = False,
) -> Finding:
    read = Settings.read({"IMAGE_SERVICE_BASE_URL": url, **settings})
    return check_address(read, http, response, is_running=is_running)


def warning(problem: str, fix: str) -> Finding:
    return warn("address", f"IMAGE_SERVICE_BASE_URL={problem}", fix)


def test_a_service_is_recognized_by_what_its_livez_answers() -> None:
    with static_server("127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.server_port}"
        assert probe(url) == UrlResponse(THIS_MACHINE, 200, is_service=True)
        server.content = b"<html>"
        assert probe(url) == UrlResponse(THIS_MACHINE, 200)
        server.status = 502
        assert probe(url) == UrlResponse(THIS_MACHINE, 502)


def test_why_nothing_answers_is_reported() -> None:
    port = free_port()
    assert probe(f"http://127.0.0.1:{port}") == UrlResponse(
        THIS_MACHINE, problem=f"127.0.0.1:{port}: Connection refused"
    )
    unresolved = probe(f"http://{'x' * 64}")
    assert unresolved.addresses == ()
    assert unresolved.problem.startswith("its name does not resolve (")
    with static_server("127.0.0.1") as server:
        spoken = probe(f"https://127.0.0.1:{server.server_port}")
    assert (spoken.addresses, spoken.status) == (THIS_MACHINE, None)
    assert spoken.problem.startswith(f"127.0.0.1:{server.server_port}: ")


def test_an_address_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        response = probe(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.05)
    assert response == UrlResponse(problem="there is no answer within 0.05 s")


def test_without_a_url_the_own_address_counts() -> None:
    settings = Settings.read({})
    expected = fine("address", "http://localhost:4000")
    assert check_address(settings, {}, None, is_running=False) == expected


@pytest.mark.parametrize("url", ["http://localhost:4000", "https://a.example"])
def test_a_url_that_leads_to_the_running_service_is_fine(url: str) -> None:
    response = UrlResponse(ELSEWHERE, 200, is_service=True)
    assert finding(url, response, is_running=True) == fine(
        "address", f"{url} answers, and it is an Aura Serve"
    )
    assert finding(url, response) == warning(
        f"{url} leads to another Aura Serve: nothing on this machine answers on 127.0.0.1:4000",
        "IMAGE_SERVICE_BASE_URL=http://localhost:4000",
    )


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (UrlResponse(problem="its name does not resolve (x)"), "its name does not resolve (x)"),
        (UrlResponse(ELSEWHERE, problem=REFUSED), REFUSED),
    ],
)
def test_what_can_not_be_reached_is_never_fine(response: UrlResponse, problem: str) -> None:
    url = "http://a.example:4000"
    assert finding(url, response) == warning(
        f"{url} can't be reached: {problem}", f"curl -v {url}/livez"
    )
    assert finding(url, response, is_running=True) == warning(
        f"{url} can't be reached though the service runs: {problem}", f"curl -v {url}/livez"
    )


def test_a_proxy_without_its_service_is_judged_while_that_runs() -> None:
    url, response = "https://a.example", UrlResponse(ELSEWHERE, 502)
    assert finding(url, response) == skip(
        "address",
        f"{url}: it answers with status 502 to GET /livez; whether it leads to the service can be "
        "seen while that runs",
    )
    assert finding(url, response, is_running=True) == warning(
        f"{url} can't be reached though the service runs: it answers with status 502 to GET /livez",
        f"curl -v {url}/livez",
    )


def test_a_redirect_is_replaced_by_where_it_leads() -> None:
    response = UrlResponse(ELSEWHERE, 308, location="https://a.example/livez")
    assert finding("http://a.example", response, is_running=True) == warning(
        "http://a.example redirects to https://a.example/livez: clients lose their request's body "
        "on the way",
        "IMAGE_SERVICE_BASE_URL=https://a.example",
    )


NOTHING = UrlResponse(THIS_MACHINE, problem="127.0.0.1:4000: Connection refused")
LOCAL = "IMAGE_SERVICE_BASE_URL=http://localhost:4000"


@pytest.mark.parametrize(
    ("url", "settings", "problem", "fix"),
    [
        (
            "http://localhost",
            {},
            "the service listens on port 4000: a frontend that uses this URL gets no answer",
            LOCAL,
        ),
        (
            "https://localhost:4000",
            {},
            "the service speaks plain HTTP on this port; TLS needs a proxy in front",
            LOCAL,
        ),
        (
            "http://localhost:4000",
            {"HOST": "203.0.113.7"},
            "the service listens on 203.0.113.7 only",
            "IMAGE_SERVICE_BASE_URL=http://203.0.113.7:4000",
        ),
    ],
)
def test_a_url_of_this_machine_must_agree_with_where_the_service_listens(
    url: str, settings: dict[str, str], problem: str, fix: str
) -> None:
    assert finding(url, NOTHING, settings=settings) == warning(f"{url}, but {problem}", fix)


def test_an_address_of_this_machine_needs_a_service_that_listens_on_it() -> None:
    addresses = reachable_addresses("0.0.0.0")
    if not addresses:
        pytest.skip("this machine has no address besides loopback")
    url = f"http://{addresses[0]}:4000"
    response = UrlResponse(addresses[:1], problem=f"{addresses[0]}:4000: Connection refused")
    assert finding(url, response) == warning(
        f"{url}, but the service listens on 127.0.0.1 only", "HOST=0.0.0.0"
    )
    expected = fine("address", f"{url}, which is this machine's; the service is not running now")
    for host in ("0.0.0.0", "::", addresses[0]):
        assert finding(url, response, settings={"HOST": host}) == expected
    tls = finding(
        f"https://{addresses[0]}:4000", response, http={"ssl_certfile": "a", "host": "::"}
    )
    assert tls.verdict.value == "OK"


def test_how_to_try_the_service_from_another_machine_is_reported() -> None:
    assert check_host(Settings.read({}), {}) == fine(
        "host", "127.0.0.1: this machine alone; HOST=0.0.0.0 lets others in"
    )
    assert check_host(Settings.read({"HOST": "203.0.113.7"}), {"port": 9}) == fine(
        "host",
        "203.0.113.7: other machines find the service at http://203.0.113.7:9, unless a firewall "
        "is in between, which can't be seen from here: open http://203.0.113.7:9/livez on one of "
        "them",
    )
