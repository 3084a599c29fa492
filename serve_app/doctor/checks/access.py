"""Who may use the service, and from where: its keys, and the origins of web pages.

Pure: uses the settings and the address that the service would listen on; opens no socket.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from serve_app.config.key_numbers import daily_quotas_by_key, weights_by_key
from serve_app.config.listening import NEW_KEY, check_host, host_of
from serve_app.config.network import LOOPBACK, is_loopback
from serve_app.config.settings import Settings
from serve_app.core.errors import SettingsError
from serve_app.doctor.finding import Finding, fail, fine, problem_of, warn

_LOOPBACK_NAMES = ("localhost", LOOPBACK, "::1")
_MIN_KEY_CHARS = 16  # a shorter key can be guessed


def check_keys(settings: Settings, http: Mapping[str, Any]) -> Finding:
    """Check that the service requires a key, or that only this machine can reach it.

    `http` has the HTTP options of the serve config.
    """
    url = settings.image_service_base_url or ""
    url_is_remote = urlsplit(url).hostname not in (*_LOOPBACK_NAMES, None)
    address = host_of(settings, http)
    try:
        weights_by_key(settings)
        daily_quotas_by_key(settings)
    except SettingsError as error:
        equal = ",".join("1" * len(settings.api_keys))
        return fail("keys", problem_of(error), f"{error.variable}={equal}")
    if short := [key for key in settings.api_keys if len(key) < _MIN_KEY_CHARS]:
        return warn(
            "keys",
            f"{len(short)} of {len(settings.api_keys)} API_KEYS can be guessed: they have fewer "
            f"than {_MIN_KEY_CHARS} characters",
            f"unset API_KEYS; {NEW_KEY}",
        )
    if settings.api_keys:
        return fine("keys", f"every caller needs a key; API_KEYS has {len(settings.api_keys)}")
    if settings.allow_anonymous:
        if is_loopback(address) and not url_is_remote:
            return fine(
                "keys", f"no key is needed (ALLOW_ANONYMOUS=1) by callers that reach {address}"
            )
        return warn(
            "keys",
            f"ALLOW_ANONYMOUS=1 without API_KEYS: anyone who reaches {address} can generate images",
            NEW_KEY,
        )
    try:
        check_host(settings, http)
    except SettingsError as error:
        return fail("keys", problem_of(error), NEW_KEY)
    if url_is_remote:
        return warn(
            "keys",
            f"IMAGE_SERVICE_BASE_URL={url} is for other machines, but without API_KEYS only this "
            "machine can reach the service",
            NEW_KEY,
        )
    return fine("keys", "no key is needed: only this machine can reach the service")


def check_origins(settings: Settings, port: int) -> Finding:
    """Check that the web pages in ALLOWED_ORIGINS can call the service."""
    if settings.vite_port == port:
        return fail(
            "origins",
            f"VITE_PORT={port} is the port of this service: the frontend's development server "
            "needs another one",
            f"VITE_PORT={5173 if port != 5173 else 5174}",
        )
    url = settings.image_service_base_url or ""
    secure = [origin for origin in settings.allowed_origins if origin.startswith("https:")]
    if secure and url.startswith("http:") and urlsplit(url).hostname not in _LOOPBACK_NAMES:
        return warn(
            "origins",
            f"pages of {secure[0]} can't call {url}: browsers block requests from https pages to "
            "http addresses",
            f"IMAGE_SERVICE_BASE_URL=https:{url.removeprefix('http:')}",
        )
    origins = ", ".join(settings.allowed_origins) or "no other origin"
    return fine("origins", f"{origins}; local development on port {settings.vite_port}")
