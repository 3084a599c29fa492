"""Where the service listens by its settings and its config, and what it refuses."""

import socket
from typing import Any

import pytest

from serve_app.config.listening import (
    NEW_KEY,
    addresses_of,
    check_listening,
    host_of,
    next_port,
    port_of,
)
from serve_app.config.network import reachable_addresses
from serve_app.config.settings import VARIABLES, Settings
from serve_app.core.errors import SettingsError
from tests.support.ports import free_port

KEY = {"API_KEYS": "k" * 24}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def read(**values: str) -> Settings:
    return Settings.read(values)


@pytest.mark.parametrize(
    ("settings", "http", "where"),
    [
        ({}, {}, ("127.0.0.1", 4000)),
        ({}, {"host": "0.0.0.0", "port": 9}, ("0.0.0.0", 9)),
        ({"HOST": "::", "BACKEND_PORT": "7"}, {"host": "0.0.0.0", "port": 9}, ("::", 7)),
        ({"HOST": "127.0.0.1"}, {"host": "0.0.0.0"}, ("127.0.0.1", 4000)),
        ({"HOST": "localhost"}, {}, ("127.0.0.1", 4000)),
        ({"HOST": "[::1]"}, {}, ("::1", 4000)),
        ({"AURA_HOST": "127.0.0.2", "HOST": "0.0.0.0"}, {}, ("127.0.0.2", 4000)),
    ],
)
def test_a_setting_wins_over_the_config_and_that_over_the_default(
    settings: dict[str, str], http: dict[str, Any], where: tuple[str, int]
) -> None:
    values = read(**settings)
    assert (host_of(values, http), port_of(values, http)) == where


@pytest.mark.parametrize(
    "name", ["x86_64-conda-linux-gnu", "mybox", "http://0.0.0.0", "0.0.0.0:4000"]
)
def test_what_is_no_address_is_refused_with_the_name_that_wins(name: str) -> None:
    with pytest.raises(SettingsError, match=f"HOST={name} must be an address.*AURA_HOST wins"):
        read(HOST=name)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "203.0.113.7"])
def test_no_other_machine_is_let_in_without_a_key(host: str) -> None:
    for settings, http, subject in (
        ({"HOST": host}, {}, f"HOST={host}"),
        ({}, {"host": host}, f"host {host} of the serve config"),
    ):
        with pytest.raises(SettingsError) as refused:
            check_listening(read(**settings), http)
        assert (refused.value.variable, refused.value.subject) == ("HOST", subject)
        assert refused.value.problem == "lets other machines in, and API_KEYS is empty"
        assert NEW_KEY in refused.value.remedy


@pytest.mark.parametrize("access", [KEY, {"ALLOW_ANONYMOUS": "1"}])
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_with_a_key_or_by_choice_other_machines_are_let_in(
    access: dict[str, str], host: str
) -> None:
    check_listening(read(HOST=host, BACKEND_PORT=str(free_port()), **access), {})


def test_an_address_of_another_machine_is_refused_with_those_of_this_one() -> None:
    with pytest.raises(SettingsError) as refused:
        check_listening(read(HOST="203.0.113.7", **KEY), {})
    assert str(refused.value).startswith(
        "HOST=203.0.113.7 is not an address of this machine. It has"
    )
    assert "127.0.0.1" in refused.value.remedy


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_port_that_is_taken_on_one_address_can_not_be_used_on_all(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"BACKEND_PORT={port} can't be used on {host}"):
            check_listening(read(HOST=host, BACKEND_PORT=str(port), **KEY), {})


@pytest.mark.parametrize("variable", ["BACKEND_PORT", "METRICS_PORT"])
@pytest.mark.parametrize(("port", "part"), [("8265", "dashboard"), ("52365", "dashboard agent")])
def test_a_port_that_ray_takes_first_can_not_be_used(variable: str, port: str, part: str) -> None:
    settings = {"BACKEND_PORT": str(free_port())} | {variable: port}
    with pytest.raises(SettingsError) as refused:
        check_listening(read(**settings), {})
    assert str(refused.value).startswith(
        f"{variable}={port} can't be used (Ray's {part} takes it). Choose another: {variable}="
    )


@pytest.mark.parametrize(("port", "other"), [(4000, 4001), (80, 4000), (65535, 4000)])
def test_the_port_to_try_instead_is_legal_and_needs_no_privileges(port: int, other: int) -> None:
    assert next_port(port) == other


def test_the_addresses_of_the_service_are_those_at_which_it_answers() -> None:
    assert addresses_of(read(), {}) == ("http://localhost:4000",)
    url = {"IMAGE_SERVICE_BASE_URL": "https://pictures.example"}
    assert addresses_of(read(**url), {}) == ("https://pictures.example", "http://localhost:4000")
    assert addresses_of(read(HOST="203.0.113.7"), {}) == ("http://203.0.113.7:4000",)
    assert addresses_of(read(HOST="fd00::7"), {}) == ("http://[fd00::7]:4000",)
    everywhere = addresses_of(read(HOST="0.0.0.0"), {"port": 9})
    assert everywhere == (
        "http://localhost:9",
        *(f"http://{address}:9" for address in reachable_addresses("0.0.0.0")),
    )
