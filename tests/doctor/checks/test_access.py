"""Who reaches the service: settings as values."""

import pytest

from serve_app.config.settings import Settings
from serve_app.doctor.checks.access import (
    NEW_KEY,
    check_address,
    check_keys,
    check_origins,
    is_loopback,
)
from serve_app.doctor.finding import Finding, fail, fine, warn

KEY = "k" * 24
BASE_URL = "IMAGE_SERVICE_BASE_URL"


def read(**values: str) -> Settings:
    return Settings.read(values)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("pictures.example", False),
    ],
)
def test_loopback_is_what_no_other_machine_reaches(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("url", "finding"),
    [
        ("", fine("address", "http://localhost:4000")),
        ("http://127.0.0.1:4000", fine("address", "http://127.0.0.1:4000")),
        ("https://pictures.example", fine("address", "https://pictures.example")),
        (
            "http://localhost",
            warn(
                "address",
                "IMAGE_SERVICE_BASE_URL=http://localhost, but the service listens on port 4000: a "
                "frontend that reads it gets no answer",
                "IMAGE_SERVICE_BASE_URL=http://localhost:4000",
            ),
        ),
    ],
)
def test_address(url: str, finding: Finding) -> None:
    settings = read(**({BASE_URL: url} if url else {}))
    assert check_address(settings, 4000) == finding


@pytest.mark.parametrize(
    ("settings", "host", "finding"),
    [
        ({}, None, fine("keys", "none: this machine alone may ask")),
        ({"API_KEYS": KEY}, "0.0.0.0", fine("keys", "1, of which every caller needs one")),
        (
            {"API_KEYS": f"{KEY},secret"},
            "0.0.0.0",
            warn(
                "keys",
                "1 of 2 API_KEYS can be guessed: shorter than 16 characters",
                f"unset API_KEYS; {NEW_KEY}",
            ),
        ),
        (
            {"ALLOW_ANONYMOUS": "1"},
            "127.0.0.1",
            fine("keys", "none: whoever reaches 127.0.0.1 may ask (ALLOW_ANONYMOUS=1)"),
        ),
        (
            {"ALLOW_ANONYMOUS": "1"},
            "0.0.0.0",
            warn(
                "keys",
                "ALLOW_ANONYMOUS=1 without API_KEYS: whoever reaches 0.0.0.0 may have pictures "
                "made",
                NEW_KEY,
            ),
        ),
        (
            {BASE_URL: "https://pictures.example"},
            "127.0.0.1",
            warn(
                "keys",
                "IMAGE_SERVICE_BASE_URL=https://pictures.example sends other machines here, but "
                "without API_KEYS this machine alone may ask",
                NEW_KEY,
            ),
        ),
    ],
)
def test_keys(settings: dict[str, str], host: str | None, finding: Finding) -> None:
    assert check_keys(read(**settings), host) == finding


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({}, fine("origins", "no page from elsewhere; local development on port 5173")),
        (
            {"ALLOWED_ORIGINS": "https://app.example", BASE_URL: "https://pictures.example"},
            fine("origins", "https://app.example; local development on port 5173"),
        ),
        (
            {"ALLOWED_ORIGINS": "https://app.example", BASE_URL: "http://pictures.example:4000"},
            warn(
                "origins",
                "pages of https://app.example can't call http://pictures.example:4000: browsers "
                "keep https pages from http addresses",
                "IMAGE_SERVICE_BASE_URL=https://pictures.example:4000",
            ),
        ),
        (
            {"VITE_PORT": "5173", "BACKEND_PORT": "5173"},
            fail(
                "origins",
                "VITE_PORT=5173 is the service's own port: the frontend's development server needs "
                "another",
                "VITE_PORT=5174",
            ),
        ),
    ],
)
def test_origins(settings: dict[str, str], finding: Finding) -> None:
    found = read(**settings)
    port = found.backend_port
    assert check_origins(found, port) == finding
