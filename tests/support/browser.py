"""Chromium for tests: Debian's, driven by Playwright, with nothing fetched behind its back.

Where it is missing, tests that need it are skipped by name. They fail instead where `AURA_REQUIRE`
lists `chromium`, as in `.ci/run`.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_MISSING = "Chromium is not installed (Debian: apt-get install chromium)"
REMOTE_NAME = "aura.test"  # of this machine, which the browser takes for another one
_OPTIONS = (
    *("--disable-background-networking", "--disable-component-update"),
    f"--host-resolver-rules=MAP {REMOTE_NAME} 127.0.0.1",
)


def chromium() -> str:
    """Return the path of Chromium; skip or fail the test without it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    if "chromium" in os.environ.get("AURA_REQUIRE", "").split(","):
        pytest.fail(_MISSING)
    pytest.skip(_MISSING)


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a browser without a window."""
    options = [*_OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=options)
        try:
            yield opened
        finally:
            opened.close()
