"""Every operation gets legal and illegal requests, over makers that return at once.

The operations that make images get them once more where a cloud's model is the default.
"""

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest
from starlette.datastructures import Headers
from starlette.types import ASGIApp

from serve_app.cloud.gemini_options import MODEL_NAME
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.jobs import Job, JobResult, JobState
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.app import open_doors
from serve_app.ingress.contracts import Maker
from serve_app.ingress.maker_by_model import MakerByModel
from tests.support.api import make_api
from tests.support.cloud_caller import info_of
from tests.support.fake_conductor import INFO, InstantConductor
from tests.support.fuzzed_api import FuzzedApi
from tests.support.instant_gemini import InstantGemini

KEY = {"Authorization": "Bearer a-key"}
POLICY = AccessPolicy(keys=digests(["a-key"]), hosts=("*",))
CALLER = POLICY.caller("POST", "/generate", Headers(KEY), None)
JOB = Job("known", CALLER, "owner", time.time())
SMALL = replace(INFO, models=(replace(INFO.default_model, native_size=64),))


def api(maker: Maker, info: ServiceInfo) -> ASGIApp:
    """Return the API, with a job that is known, however long the tests before took."""
    ledger = Ledger(None, clock=lambda: JOB.created)

    async def fill() -> None:
        await ledger.create(JOB, None)
        meta = (
            '{"model":"m","durationMs":1,"seeds":[1],"width":8,"height":8,"steps":1,'
            '"guidanceScale":1,"sampler":"euler","refined":false,"jobId":"known","warnings":[]}'
        )
        await ledger.finish(
            JOB.id, JOB.owner, JobState.SUCCEEDED, None, JobResult((b"png",), meta, JOB.created)
        )

    asyncio.run(fill())
    return make_api(maker, ledger, info, POLICY, doors=open_doors(mcp=True))


def cloud_api(info: ServiceInfo) -> ASGIApp:
    """Return the API of a service whose default model is a cloud's."""
    maker = MakerByModel(InstantConductor(), InstantGemini(), MODEL_NAME, is_default=True)
    return api(maker, info)


LOCAL = FuzzedApi(api(InstantConductor(), SMALL), SMALL, KEY, JOB.id)
CLOUD_INFO = info_of(is_default=True)
CLOUD = FuzzedApi(cloud_api(CLOUD_INFO), CLOUD_INFO, KEY, JOB.id)
MAKE_IMAGES = [
    "POST /generate",
    "POST /refine",
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "POST /sdapi/v1/txt2img",
    "POST /sdapi/v1/img2img",
]
SIGNED = "GET /images/{job}/{number}.{format}"  # nobody can guess one: see `test_image_links`
WITHOUT_INPUT = {"GET /health", "GET /livez", "GET /licenses"}  # public: one possible request


def successes(statuses: Counter[int]) -> int:
    return sum(times for status, times in statuses.items() if status < 300)


@pytest.mark.parametrize("label", LOCAL.operations)
def test_every_operation_keeps_its_description(label: str) -> None:
    """Some requests must succeed, or what lies behind the validation was not tried."""
    has_fields = LOCAL.operations[label].body or LOCAL.operations[label].query
    few = label in WITHOUT_INPUT or ("/sdapi/" in label and not has_fields)
    statuses = LOCAL.fuzz(label, 10 if few else 60, derandomize=True)
    least = 1 if few else 3
    assert successes(statuses) >= (0 if label == SIGNED else least)


@pytest.mark.parametrize("label", MAKE_IMAGES)
def test_every_door_of_a_cloud_keeps_its_description(label: str) -> None:
    assert successes(CLOUD.fuzz(label, 30, derandomize=True)) >= 2


def test_there_are_as_many_operations_as_routes() -> None:
    assert len(LOCAL.operations) == 44
    assert CLOUD.operations.keys() == LOCAL.operations.keys()


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("label", LOCAL.operations)
def test_every_operation_keeps_its_description_a_thousand_times(label: str) -> None:
    statuses = LOCAL.fuzz(label, 1000)
    assert statuses.total() >= (1 if label in WITHOUT_INPUT else 1000)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("label", MAKE_IMAGES)
def test_every_door_of_a_cloud_keeps_its_description_a_thousand_times(label: str) -> None:
    assert CLOUD.fuzz(label, 1000).total() >= 1000
