"""Two checkpoints asked for at once, through the whole API and a real replica without Ray."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.core.events import ReplicaFacts
from serve_app.core.facts import ModelFacts, ServiceFacts
from serve_app.core.sample import Leg, Sample
from serve_app.core.spec import Stage
from serve_app.demo.checkpoints import demo_folder
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage import Source, StageConfig, StageReplica
from serve_app.runtime.checkpoint import inspect
from tests.ingress.conftest import api_over
from tests.runtime.ldm import to_single_file
from tests.runtime.tunes import perturbed


class Here:
    """The `StageClient` contract over one replica in this process."""

    def __init__(self, replica: StageReplica) -> None:
        self.replica = replica

    async def advance(self, sample: Sample[Any], leg: Leg) -> AsyncIterator[Any]:
        async for event in self.replica.advance(sample, leg):
            yield event

    async def facts(self) -> list[ReplicaFacts]:
        return [await self.replica.facts()]


Serving = Callable[..., tuple[httpx.AsyncClient, StageReplica]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """The demo, and a fine-tune of it in a single file."""
    folder, demo = tmp_path_factory.mktemp("models"), demo_folder(Stage.BASE)
    file = to_single_file(perturbed(demo, folder / "tune"), folder / "tune.safetensors")
    return {"demo": Source("demo", demo), "tune": Source("tune", file, demo)}


@pytest.fixture
def serving(sources: dict[str, Source]) -> Iterator[Serving]:
    """Makes a service with some of the models, of which `room` are in memory at a time."""
    replicas: list[StageReplica] = []

    def serve(*names: str, room: int = 1, **more: Source) -> tuple[httpx.AsyncClient, StageReplica]:
        there = sources | more
        config = StageConfig(
            models=tuple(there[name] for name in names),
            device="cpu",
            precision=None,
            xformers=False,
            cpu_threads=1,
            images=2,
            strict=True,
            snapshot_every=5,
            room=room,
        )
        replica = StageReplica(config)
        replicas.append(replica)
        noise = inspect(demo_folder(Stage.BASE), Stage.BASE).noise
        models = tuple(ModelFacts(name, 128, noise) for name in names)
        facts = ServiceFacts(models, None, "cpu", "fp32", image_count=1)
        api = api_over(Conductor(Here(replica), None, models), Ledger(None), facts)
        transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost"), replica

    yield serve
    for replica in replicas:
        replica.close()


def asked(model: str, seed: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "a red circle", "seed": seed, "steps": 6, "model": model} | more


async def painted(client: httpx.AsyncClient, body: dict[str, Any], route: str = "/generate") -> str:
    answer = await client.post(route, json=body, timeout=120)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["images"][0])


CROWD = [
    asked(model, seed, **more)
    for seed, more in ((1, {}), (2, {"steps": 9}), (3, {"guidanceScale": 1, "sampler": "euler_a"}))
    for model in ("demo", "tune")
]


@pytest.mark.parametrize("room", [1, 2])
async def test_two_models_asked_for_at_once_each_give_their_own_bytes(
    serving: Serving, room: int
) -> None:
    alone = {}
    for name in ("demo", "tune"):
        client, _ = serving(name)
        for body in CROWD:
            if body["model"] == name:
                alone[json.dumps(body)] = await painted(client, body)
    client, replica = serving("demo", "tune", room=room)
    for _ in range(2):
        together = await asyncio.gather(*(painted(client, body) for body in CROWD))
        assert together == [alone[json.dumps(body)] for body in CROWD]
    assert len(set(together)) == len(CROWD)
    assert len((await replica.facts()).models) == room


async def test_a_picture_asks_again_for_its_own_model(serving: Serving) -> None:
    client, _ = serving("demo", "tune")
    first = await painted(client, asked("tune", 4))
    with Image.open(BytesIO(base64.b64decode(first))) as picture:
        record = json.loads(picture.info["aura"])
        assert "Model: tune" in picture.info["parameters"]
    await painted(client, asked("demo", 4))
    assert await painted(client, record["request"], record["route"]) == first


async def test_refining_by_model_path_is_that_model_s_work(serving: Serving) -> None:
    client, _ = serving("demo", "tune")
    base = await painted(client, asked("demo", 5))
    body = {"images": [base], "prompt": "a red circle", "seed": 5, "steps": 6}
    paths = [{"config": {"modelPath": name}} for name in ("demo", "tune", "demo")]
    one, other, again = [await painted(client, body | path, "/refine") for path in paths]
    assert one == again != other


async def test_a_model_whose_files_are_gone_ends_its_own_requests_alone(
    serving: Serving, sources: dict[str, Source], tmp_path: Path
) -> None:
    file = sources["tune"].path
    assert file is not None
    fading = tmp_path / "fading.safetensors"
    fading.write_bytes(file.read_bytes())
    tune = replace(sources["tune"], name="fading", path=fading)
    client, replica = serving("demo", "fading", fading=tune)
    fading.unlink()
    answers = await asyncio.gather(
        *(client.post("/generate", json=asked(name, 6)) for name in ("demo", "fading"))
    )
    assert [answer.status_code for answer in answers] == [201, 503]
    error = answers[1].json()["error"]
    assert error["code"] == "MODEL_UNAVAILABLE"
    assert "fading" in error["message"] and str(tmp_path) not in answers[1].text
    replica.check_health()
    assert await painted(client, asked("demo", 6)) == answers[0].json()["images"][0]
