"""The check of the cloud's key: what it finds, and that it makes no image."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from serve_app.cloud.key_check import KeyResponse, probe
from serve_app.config.settings import Settings
from serve_app.doctor.checks.cloud import check_cloud
from serve_app.doctor.finding import Finding, Verdict
from tests.support.gemini_stand_in import KEY, GeminiStandIn, gemini_stand_in


@pytest.fixture
def gemini() -> Iterator[GeminiStandIn]:
    with gemini_stand_in() as server:
        yield server


def findings(settings: dict[str, Any], **environ: str) -> list[Finding]:
    return list(check_cloud(Settings.model_validate(settings), probe, environ))


def test_a_good_key_is_found_without_making_an_image(gemini: GeminiStandIn) -> None:
    settings = {"gemini_api_key": KEY, "gemini_base_url": gemini.url}
    (finding,) = findings(settings)
    assert finding.verdict is Verdict.OK
    assert "makes all images, for money" in finding.message
    (beside,) = findings({**settings, "model_checkpoint_dir": "/models/sdxl"})
    assert "makes images of the model gemini, for money" in beside.message
    assert gemini.looked_up == ["/v1beta/models/gemini-nano-banana-2.1"] * 2
    assert not gemini.calls


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"gemini_api_key": SecretStr("a-wrong-key")}, "GEMINI_API_KEY="),
        ({"gemini_model": "of-last-year"}, "GEMINI_MODEL=gemini-nano-banana-2.1"),
    ],
)
def test_a_bad_key_or_model_fails_with_the_line_to_change(
    gemini: GeminiStandIn, changes: dict[str, Any], fix: str
) -> None:
    (finding,) = findings({"gemini_api_key": KEY, "gemini_base_url": gemini.url, **changes})
    assert (finding.verdict, finding.fix) == (Verdict.FAIL, fix)
    assert "wrong-key" not in finding.message


def test_a_cloud_that_is_away_is_a_warning() -> None:
    (finding,) = findings({"gemini_api_key": KEY, "gemini_base_url": "http://127.0.0.1:9"})
    assert (finding.verdict, finding.fix) == (Verdict.WARN, "curl -v http://127.0.0.1:9")
    settings = Settings(gemini_api_key=SecretStr(KEY))
    (odd,) = check_cloud(settings, lambda options: KeyResponse(500), {})
    assert "it answers with status 500" in odd.message


def test_nothing_is_called_offline_or_without_a_key(gemini: GeminiStandIn) -> None:
    settings = {"gemini_api_key": KEY, "gemini_base_url": gemini.url}
    (skipped,) = findings(settings, HF_HUB_OFFLINE="1")
    assert skipped.verdict is Verdict.SKIP
    assert findings({}) == []
    (unused,) = findings({}, GEMINI_API_KEY="of-another-program")
    assert unused.verdict is Verdict.OK
    assert "another-program" not in unused.message
    assert not gemini.looked_up
