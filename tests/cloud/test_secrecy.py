"""The key goes to the cloud in one header, and nowhere else."""

import logging
import pickle
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app import app
from serve_app.cloud.gemini_client import GeminiClient
from serve_app.cloud.gemini_maker import GeminiMaker
from serve_app.config.cloud_model import gemini_options
from serve_app.config.settings import Settings, check_given
from serve_app.core.errors import SettingsError
from serve_app.core.service.metrics import InMemoryMeter
from tests.support.cloud_caller import Caller, info_of
from tests.support.gemini_stand_in import KEY, GeminiStandIn, Reply, error_of, made

BODY = {"prompt": "a harbour in fog", "imageCount": 1}


async def test_the_key_is_in_one_header_of_the_call_and_in_no_url(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller() as client:
        await client.post("/generate", json=BODY)
    (call,) = gemini.calls
    assert KEY not in call.path
    assert KEY not in str(call.body)
    holders = [name.lower() for name, value in call.headers.items() if KEY in value]
    assert holders == ["x-goog-api-key"]


async def test_no_log_response_or_metric_has_the_key_whatever_happens(
    caller: Caller,
    gemini: GeminiStandIn,
    meter: InMemoryMeter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    gemini.replies = [
        Reply(),
        error_of(403, "PERMISSION_DENIED"),
        error_of(400, "INVALID_ARGUMENT"),
        error_of(504, "DEADLINE_EXCEEDED"),
        made(reason="SAFETY"),
        Reply(body=b"{", lacks=9),
        Reply(302, headers={"Location": "http://127.0.0.1:9/"}),
        error_of(429, "RESOURCE_EXHAUSTED"),
    ]
    async with caller() as client:
        for _ in range(len(gemini.replies) + 1):
            answer = await client.post("/generate", json=BODY)
            texts += [answer.text, str(answer.headers)]
        for path in ("/health", "/licenses", "/openapi.json", "/v1/models"):
            answer = await client.get(path)
            assert answer.status_code == 200
            texts += [answer.text, str(answer.headers)]
    assert "httpcore" in caplog.text  # the most talkative of those who could tell
    texts += [caplog.text, *(str(record.__dict__) for record in caplog.records), str(vars(meter))]
    assert not [text for text in texts if KEY in text]


async def test_no_error_of_a_call_shows_the_key_in_its_stack_or_its_fields(
    gemini: GeminiStandIn,
) -> None:
    client = GeminiClient(gemini.options(retries=0), InMemoryMeter())
    unreachable = GeminiClient(
        gemini.options(retries=0, base_url="http://127.0.0.1:9"), InMemoryMeter()
    )
    gemini.replies = [Reply(body=b"{", lacks=9), error_of(403, "PERMISSION_DENIED")]
    for each in (client, client, unreachable):
        with pytest.raises(Exception, match="cloud") as failed:
            await each.generate(b"{}")
        shown = "".join(traceback.format_exception(failed.value, limit=-20))
        assert KEY not in shown + repr(failed.value) + str(vars(failed.value))
    await client.close()
    await unreachable.close()


async def test_no_repr_on_the_keys_way_to_the_ingress_shows_it(gemini: GeminiStandIn) -> None:
    settings = Settings(gemini_api_key=SecretStr(KEY), gemini_base_url=gemini.url)
    opener = app.http(settings, info_of(is_default=True))
    maker = GeminiMaker(gemini.options(), InMemoryMeter())
    shown = [settings, opener, gemini_options(settings), maker, maker.__dict__, vars(maker._client)]
    texts = [*map(repr, shown), *map(str, shown), settings.model_dump_json()]
    assert not [text for text in texts if KEY in text]
    assert gemini_options(settings) == pickle.loads(pickle.dumps(gemini_options(settings)))
    await maker.close()


@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "AURA_GEMINI_API_KEY"])
def test_an_illegal_key_is_refused_without_being_repeated(tmp_path: Path, name: str) -> None:
    (tmp_path / ".env.local").write_text(f'{name}="{KEY} with spaces"\n')
    with pytest.raises(SettingsError) as refused:
        Settings.read(folder=tmp_path)
    assert str(refused.value) == f"{name} must be a key of visible characters, without spaces"
    with pytest.raises(SettingsError) as in_config:
        check_given({name: f"{KEY}\n"})
    assert KEY not in str(in_config.value)
