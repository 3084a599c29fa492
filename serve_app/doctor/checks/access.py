"""Who reaches the service, and from where: its address, its keys, the origins of pages.

Pure: knows the settings and where the service would listen, and opens no socket.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from serve_app.config.serve_config import LOOPBACK
from serve_app.config.settings import Settings
from serve_app.doctor.finding import Finding, fail, fine, warn

NEW_KEY = (
    "python -c \"import secrets; print('\\nAPI_KEYS=' + secrets.token_urlsafe(24))\" >> .env.local"
)
_LOCAL = ("localhost", LOOPBACK, "::1")
_SHORT = 16  # characters, under which a key can be guessed


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine's own, which no other machine reaches."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(settings: Settings, port: int) -> Finding:
    """Whether the address that the frontend is given is the one where the service listens."""
    url = settings.image_service_base_url
    if url is None:
        return fine("address", f"http://localhost:{port}")
    parts = urlsplit(url)
    told = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.hostname in _LOCAL and told != port:
        return warn(
            "address",
            f"IMAGE_SERVICE_BASE_URL={url}, but the service listens on port {port}: a frontend "
            "that reads it gets no answer",
            f"IMAGE_SERVICE_BASE_URL=http://localhost:{port}",
        )
    return fine("address", url)


def check_keys(settings: Settings, host: str | None) -> Finding:
    """Whether those may ask who should; `host` is the config's own, None where it names none."""
    url = settings.image_service_base_url or ""
    elsewhere = urlsplit(url).hostname not in (*_LOCAL, None)
    asked = host or LOOPBACK
    if short := [key for key in settings.api_keys if len(key) < _SHORT]:
        return warn(
            "keys",
            f"{len(short)} of {len(settings.api_keys)} API_KEYS can be guessed: shorter than "
            f"{_SHORT} characters",
            f"unset API_KEYS; {NEW_KEY}",
        )
    if settings.api_keys:
        return fine("keys", f"{len(settings.api_keys)}, of which every caller needs one")
    if settings.allow_anonymous:
        if is_loopback(asked) and not elsewhere:
            return fine("keys", f"none: whoever reaches {asked} may ask (ALLOW_ANONYMOUS=1)")
        return warn(
            "keys",
            f"ALLOW_ANONYMOUS=1 without API_KEYS: whoever reaches {asked} may have pictures made",
            NEW_KEY,
        )
    if not is_loopback(asked):
        return warn(
            "keys",
            f"the config's host is {asked}, but without API_KEYS the service listens on "
            f"{LOOPBACK} alone",
            NEW_KEY,
        )
    if elsewhere:
        return warn(
            "keys",
            f"IMAGE_SERVICE_BASE_URL={url} sends other machines here, but without API_KEYS this "
            "machine alone may ask",
            NEW_KEY,
        )
    return fine("keys", "none: this machine alone may ask")


def check_origins(settings: Settings, port: int) -> Finding:
    """Whether the pages that should call the service can."""
    if settings.vite_port == port:
        return fail(
            "origins",
            f"VITE_PORT={port} is the service's own port: the frontend's development server needs "
            "another",
            f"VITE_PORT={5173 if port != 5173 else 5174}",
        )
    url = settings.image_service_base_url or ""
    secure = [origin for origin in settings.allowed_origins if origin.startswith("https:")]
    if secure and url.startswith("http:") and urlsplit(url).hostname not in _LOCAL:
        return warn(
            "origins",
            f"pages of {secure[0]} can't call {url}: browsers keep https pages from http addresses",
            f"IMAGE_SERVICE_BASE_URL=https:{url.removeprefix('http:')}",
        )
    named = ", ".join(settings.allowed_origins) or "no page from elsewhere"
    return fine("origins", f"{named}; local development on port {settings.vite_port}")
