"""`aura up`: what it refuses before it starts anything, in one line with the remedy."""

from pathlib import Path

import pytest

from serve_app.cli.console import REFUSED
from serve_app.cli.up import up
from serve_app.config.settings import VARIABLES
from tests.support.ports import free_port

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BACKEND_PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"HOST": "0.0.0.0"}, "HOST=0.0.0.0 lets other machines in, and API_KEYS is empty. Make a"),
        ({"HOST": "::"}, "HOST=:: lets other machines in, and API_KEYS is empty. Make a key: "),
        ({"HOST": "mybox"}, "HOST=mybox must be an address, such as 127.0.0.1, 0.0.0.0 or ::"),
        ({"HOST": "203.0.113.7", "API_KEYS": "k"}, "HOST=203.0.113.7 is not an address of this"),
        ({"RAY_TMPDIR": "/tmp/" + "x" * 94}, "has 99 bytes, and the paths of Ray's sockets leave"),
        (
            {"RAY_TMPDIR": "/dev/null"},
            "RAY_TMPDIR=/dev/null can't be used for Ray's files: /dev/nul",
        ),
        ({"LEDGER_FILE": "/dev/null/l"}, "LEDGER_FILE=/dev/null/l can't be created: /dev/null is"),
        ({"METRICS_PORT": "65536"}, "METRICS_PORT=65536 must be at most 65535"),
    ],
)
def test_an_address_that_may_not_or_can_not_be_used_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, str],
    sentence: str,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert up(CONFIG) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
