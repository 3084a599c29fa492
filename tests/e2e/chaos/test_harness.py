"""The harness itself: it sends at the stated times, and tells right answers from all others."""

import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.metrics import InMemoryMeter
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.faulty_service import ORIGIN
from serve_app.testing.sleeping_stage import SleepingStage, service_info, stage_config
from tests.e2e.chaos.bodies import (
    OPENAI,
    REFINE,
    expected_pixels,
    image_body,
    openai_body,
    refine_body,
)
from tests.e2e.chaos.load import Answer, Call, Load, steady
from tests.e2e.chaos.probe import Probe
from tests.e2e.chaos.verdict import Kind, count, judge, quantile
from tests.support.http_server import serving
from tests.support.local_stage import LocalStage
from tests.support.ports import free_port

FAST = GpuSpeed().scaled(0.02)
BODY = image_body(1)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the API over one replica of each stage, in this process."""
    strikes = tmp_path_factory.mktemp("strikes")
    replicas = [
        SleepingStage(stage_config(stage, images=4), FAST, InMemoryMeter, strikes)
        for stage in Stage
    ]
    info = service_info(refiner=True)
    base, refiner = (LocalStage(replica) for replica in replicas)
    conductor = Conductor(base, refiner, info.models, refiner_name=info.refiner)
    policy = AccessPolicy(origins=(ORIGIN,))
    config = HttpConfig(info=info, access_policy=policy)
    ingress = open_ingress(config, conductor, Ledger(None), InMemoryMeter(), _cancel_nowhere)
    with serving(ingress.asgi) as address:
        yield address
    for replica in replicas:
        replica.close()


async def _cancel_nowhere(job: str) -> None:
    pass


def test_every_request_is_sent_at_its_time_and_its_picture_is_compared(address: str) -> None:
    bodies = [image_body(seed, steps=4) for seed in range(8)]
    bodies[5] = image_body(5, steps=4, prompt="fault:nan@2")
    with Load(address) as load, Probe(address) as probe:
        began = time.monotonic()
        load.send(steady(bodies, rate=20))
        load.send([Call(image_body(9, steps=150), leaves_after=0.1)])
        answers = load.answers(60)
    assert judge(answers[5]).kind is not Kind.MADE
    kinds = [judge(answer).kind for number, answer in enumerate(answers) if number != 5]
    assert kinds == [Kind.MADE] * 7 + [Kind.LEFT]
    assert answers[8].seconds >= 0.099  # it stays for as long as it should
    sent = [answer.sent - began for answer in answers[:8]]
    assert all(at >= number / 20 - 0.001 for number, at in enumerate(sent))
    assert probe.failed == 0


def test_pictures_of_every_route_are_compared(address: str) -> None:
    calls = [
        Call(image_body(2**32 - 1, steps=4, imageCount=2)),
        Call(refine_body(1, steps=8), route=REFINE),
        Call(openai_body(2, steps=4), route=OPENAI),
    ]
    with Load(address) as load:
        load.send(calls)
        answers = load.answers(60)
    assert count(answers) == {"made": 3}
    assert [len(expected_pixels(call.body, call.route)) for call in calls] == [2, 1, 1]
    others = [{**call.body, "prompt": "a hen"} for call in calls]
    for answer, body in zip(answers, others, strict=True):
        other = replace(answer, call=replace(answer.call, body=body))
        assert judge(other).kind is Kind.WRONG


def test_a_request_that_nobody_answers_is_anything_else() -> None:
    with Load(f"http://127.0.0.1:{free_port()}") as load:
        load.send([Call(BODY)])
        (answer,) = load.answers(30)
    assert judge(answer).kind is Kind.OTHER


def made(*pictures: bytes) -> Answer:
    pngs = []
    for pixels in pictures:
        file = io.BytesIO()
        Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(8, 8, 3)).save(file, "png")
        pngs.append(base64.b64encode(file.getvalue()).decode())
    body = json.dumps({"images": pngs})
    return Answer(Call(BODY), 0.0, 1.0, 201, {}, body.encode())


def error(status: int, body: str, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(Call(BODY), 0.0, 1.0, status, names, body.encode())


CODED = json.dumps({"error": {"code": "OVERLOADED", "message": "too much"}})
CORS = {"access_control_allow_origin": ORIGIN}


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (made(*expected_pixels(BODY)), Kind.MADE, "made"),
        (made(*expected_pixels(image_body(2))), Kind.WRONG, "201 with a wrong picture"),
        (made(*2 * expected_pixels(BODY)), Kind.WRONG, "201 with a wrong picture"),
        (error(503, CODED, retry_after="3", **CORS), Kind.ERROR, "503 OVERLOADED"),
        (error(503, CODED, **CORS), Kind.OTHER, "503 OVERLOADED without Retry-After"),
        (error(503, CODED, x_should_retry="false", **CORS), Kind.ERROR, "503 OVERLOADED"),
        (
            error(503, CODED, x_should_retry="false", retry_after="3", **CORS),
            Kind.OTHER,
            "503 OVERLOADED with Retry-After, although a retry can't help",
        ),
        (error(504, CODED, **CORS), Kind.ERROR, "504 OVERLOADED"),
        (error(504, CODED), Kind.OTHER, "504 OVERLOADED without CORS"),
        (error(500, "{}", **CORS), Kind.OTHER, "500 without a named error"),
        (error(500, "oh", content_type="text/plain"), Kind.OTHER, "500 in text/plain"),
        (Answer(Call(BODY), 0.0, 1.0, failure="no answer"), Kind.OTHER, "no answer"),
        (Answer(Call(BODY), 0.0, 1.0, left=True), Kind.LEFT, "client left"),
    ],
)
def test_an_answer_is_made_wrong_a_named_error_or_anything_else(
    answer: Answer, kind: Kind, text: str
) -> None:
    assert judge(answer).kind is kind
    assert count([answer]) == {text: 1}


def test_a_quantile_is_a_value_that_occurred() -> None:
    assert [quantile([3, 1, 2, 4], share) for share in (0.0, 0.5, 0.51, 1.0)] == [1, 2, 3, 4]
