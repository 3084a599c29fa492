"""Checks of who can reach the service, with settings as values."""

import pytest

from serve_app.config.listening import NEW_KEY
from serve_app.config.settings import Settings
from serve_app.doctor.checks.access import check_keys, check_origins
from serve_app.doctor.finding import Finding, fail, fine, warn

KEY = "k" * 24
BASE_URL = "IMAGE_SERVICE_BASE_URL"


def read(**values: str) -> Settings:
    return Settings.read(values)


@pytest.mark.parametrize(
    ("settings", "host", "finding"),
    [
        ({}, None, fine("keys", "no key is needed: only this machine can reach the service")),
        ({"API_KEYS": KEY}, "0.0.0.0", fine("keys", "every caller needs a key; API_KEYS has 1")),
        (
            {"API_KEYS": f"{KEY},secret"},
            "0.0.0.0",
            warn(
                "keys",
                "1 of 2 API_KEYS can be guessed: they have fewer than 16 characters",
                f"unset API_KEYS; {NEW_KEY}",
            ),
        ),
        (
            {"API_KEYS": f"{KEY},{KEY[1:]}", "KEY_WEIGHTS": "3"},
            "0.0.0.0",
            fail(
                "keys",
                "KEY_WEIGHTS must have one number for each key: API_KEYS has 2, this has 1",
                "KEY_WEIGHTS=1,1",
            ),
        ),
        (
            {"API_KEYS": f"{KEY},{KEY[1:]}", "KEY_DAILY_MPSTEPS": "3"},
            "0.0.0.0",
            fail(
                "keys",
                "KEY_DAILY_MPSTEPS must have one number for each key: API_KEYS has 2, this has 1",
                "KEY_DAILY_MPSTEPS=1,1",
            ),
        ),
        (
            {"ALLOW_ANONYMOUS": "1"},
            "127.0.0.1",
            fine("keys", "no key is needed (ALLOW_ANONYMOUS=1) by callers that reach 127.0.0.1"),
        ),
        (
            {"ALLOW_ANONYMOUS": "1"},
            "0.0.0.0",
            warn(
                "keys",
                "ALLOW_ANONYMOUS=1 without API_KEYS: anyone who reaches 0.0.0.0 can generate "
                "images",
                NEW_KEY,
            ),
        ),
        (
            {"HOST": "0.0.0.0"},
            "127.0.0.1",
            fail("keys", "HOST=0.0.0.0 lets other machines in, and API_KEYS is empty", NEW_KEY),
        ),
        (
            {},
            "0.0.0.0",
            fail(
                "keys",
                "host 0.0.0.0 of the serve config lets other machines in, and API_KEYS is empty",
                NEW_KEY,
            ),
        ),
        (
            {BASE_URL: "https://pictures.example"},
            "127.0.0.1",
            warn(
                "keys",
                "IMAGE_SERVICE_BASE_URL=https://pictures.example is for other machines, but "
                "without API_KEYS only this machine can reach the service",
                NEW_KEY,
            ),
        ),
    ],
)
def test_everybody_who_can_reach_the_service_needs_a_key(
    settings: dict[str, str], host: str | None, finding: Finding
) -> None:
    assert check_keys(read(**settings), {"host": host}) == finding


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({}, fine("origins", "no other origin; local development on port 5173")),
        (
            {"ALLOWED_ORIGINS": "https://app.example", BASE_URL: "https://pictures.example"},
            fine("origins", "https://app.example; local development on port 5173"),
        ),
        (
            {"ALLOWED_ORIGINS": "https://app.example", BASE_URL: "http://pictures.example:4000"},
            warn(
                "origins",
                "pages of https://app.example can't call http://pictures.example:4000: browsers "
                "block requests from https pages to http addresses",
                "IMAGE_SERVICE_BASE_URL=https://pictures.example:4000",
            ),
        ),
        (
            {"VITE_PORT": "5173", "BACKEND_PORT": "5173"},
            fail(
                "origins",
                "VITE_PORT=5173 is the port of this service: the frontend's development server "
                "needs another one",
                "VITE_PORT=5174",
            ),
        ),
    ],
)
def test_listed_origins_must_be_able_to_call(settings: dict[str, str], finding: Finding) -> None:
    values = read(**settings)
    assert check_origins(values, values.backend_port) == finding
