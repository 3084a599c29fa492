"""GEMINI_MODEL changes between two starts: a picture names the model that made it."""

import base64
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from serve_app.cloud.gemini_maker import GeminiMaker
from serve_app.cloud.gemini_options import MODEL_NAME
from serve_app.core.service.metrics import InMemoryMeter
from serve_app.core.service.unfinished import Unfinished
from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.job_spool import JobSpool
from serve_app.ingress.maker_by_model import MakerByModel
from serve_app.ingress.metadata.record import RECORD
from serve_app.spool.folder import SpoolFolder
from tests.support.api import Client
from tests.support.cloud_caller import info_of
from tests.support.fake_conductor import FakeConductor, WaitingConductor
from tests.support.gemini_stand_in import MODEL, GeminiStandIn
from tests.support.interrupted_jobs import interrupt, resume
from tests.support.job_requests import KEY, post
from tests.support.waiting import until_async

OLD = "gemini-of-before"
BEFORE, NOW = info_of(is_default=True, remote=OLD), info_of(is_default=True)


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    opened = SpoolFolder(tmp_path / "spool")
    opened.open()
    return opened


@pytest.fixture
async def maker(
    local: FakeConductor, gemini: GeminiStandIn, meter: InMemoryMeter
) -> AsyncIterator[MakerByModel]:
    """Make images by the model of the second start."""
    cloud = GeminiMaker(gemini.options(), meter)
    yield MakerByModel(local, cloud, MODEL_NAME, is_default=True)
    await cloud.close()


async def test_a_job_that_is_finished_after_the_change_names_the_new_model_everywhere(
    client: Client, maker: MakerByModel, folder: SpoolFolder
) -> None:
    before = JobSpool(folder, RERUN_FORMATS, BEFORE)
    unfinished, _ = await interrupt(client, before, WaitingConductor(), info=BEFORE)
    assert unfinished == Unfinished(spooled=1)

    http = resume(client, JobSpool(folder, RERUN_FORMATS, NOW), maker, info=NOW)
    await until_async(lambda: not folder.ids())
    answer = await post(http, **KEY)
    assert answer.status_code == 201, answer.text
    assert answer.json()["meta"]["model"] == MODEL
    assert OLD not in answer.text
    image = Image.open(BytesIO(base64.b64decode(answer.json()["images"][0])))
    assert image.info["parameters"].endswith(f"Model: {MODEL}")
    assert json.loads(image.info[RECORD])["models"] == {"base": MODEL}


async def test_a_job_that_was_finished_before_the_change_keeps_the_name_of_the_old_one(
    client: Client, maker: MakerByModel, local: FakeConductor
) -> None:
    route, body = "/sdapi/v1/txt2img", {"prompt": "a harbour in fog"}
    first = await client(local, info=BEFORE).post(route, json=body, headers=KEY)
    again = await client(maker, info=NOW).post(route, json=body, headers=KEY)
    assert first.json()["images"] == again.json()["images"]
    for answer in (first, again):
        info = json.loads(answer.json()["info"])
        assert info["sd_model_name"] == OLD
        assert info["infotexts"][0].endswith(f"Model: {OLD}")
