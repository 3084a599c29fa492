"""What the fixtures of these tests are."""

from typing import Any, Protocol

from playwright.sync_api import Page
from starlette.types import ASGIApp


class Serve(Protocol):
    """Runs an API until the test ends, and returns its address."""

    def __call__(self, api: ASGIApp) -> str: ...


class OpenPage(Protocol):
    """Opens the page of an address in a fresh profile, and returns it when it knows its service."""

    def __call__(self, address: str, **options: Any) -> Page: ...
