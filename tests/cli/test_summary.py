"""What `aura up` shows of a service that is ready."""

from pathlib import Path

import pytest

from serve_app.cli.summary import print_summary
from serve_app.config.settings import Settings
from serve_app.ingress.access import PUBLIC_PATHS


def test_the_summary_names_every_page_that_needs_no_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_summary(Settings(api_keys=("k" * 20,)), {}, Path("/logs"))
    lines = "".join(capsys.readouterr()).splitlines()
    (line,) = [line for line in lines if line.lstrip().startswith("keys")]
    for path in PUBLIC_PATHS - {"/", "/openapi.json"}:  # which belong to /docs
        assert path in line


def test_the_summary_says_where_the_interface_is_described_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_summary(Settings(backend_port=4321), {}, Path("/logs"))
    lines = "".join(capsys.readouterr()).splitlines()
    (line,) = [line for line in lines if line.lstrip().startswith("docs")]
    assert line.split() == ["docs", "http://localhost:4321/docs"]
