"""Two checkpoints and two LoRAs asked for at once, through the whole API and a real replica
without Ray."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ExtensionInfo, ModelInfo, ServiceInfo
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ExtensionSource, ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from tests.support.api import make_api
from tests.support.checkpoints import perturbed
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.lora_files import lora_file
from tests.support.single_files import to_single_file

Serving = Callable[..., tuple[httpx.AsyncClient, StageReplica]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    """The demo, and a fine-tune of it in a single file."""
    folder, demo = tmp_path_factory.mktemp("models"), demo_folder(Stage.BASE)
    file = to_single_file(perturbed(demo, folder / "tune"), folder / "tune.safetensors")
    return {"demo": ModelSource("demo", demo), "tune": ModelSource("tune", file, demo)}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExtensionSource, ...]:
    """Two LoRAs of all networks, which fit both models, and one that fits the demo alone."""
    folder, demo = tmp_path_factory.mktemp("loras"), demo_folder(Stage.BASE)
    both = ("demo", "tune")
    return (
        ExtensionSource("lora", "ink", lora_file(demo, folder / "ink.safetensors", seed=1), both),
        ExtensionSource(
            "lora", "oil", lora_file(demo, folder / "oil.safetensors", seed=2, ranks=[2]), both
        ),
        ExtensionSource(
            "lora", "own", lora_file(demo, folder / "own.safetensors", seed=3), ("demo",)
        ),
    )


def start(
    models: Sequence[ModelSource],
    loras: tuple[ExtensionSource, ...],
    *,
    room: int = 1,
    lora_room: int = 2,
) -> tuple[httpx.AsyncClient, StageReplica]:
    """Return a service with these models, of which `room` are in memory at a time, and with these
    LoRAs, of which each model has `lora_room`."""
    config = cpu_stage(
        models,
        max_loaded_models=room,
        extensions=loras,
        max_loaded_extensions=lora_room,
    )
    replica = StageReplica(config)
    noise = inspect(demo_folder(Stage.BASE), Stage.BASE).noise_config
    infos = tuple(ModelInfo(model.name, 128, noise) for model in models)
    extensions = tuple(
        ExtensionInfo(
            "lora",
            source.name,
            source.models,
            default_weight=0.9 if source.name == "oil" else 1.0,
        )
        for source in loras
    )
    info = ServiceInfo(
        infos, None, "cpu", "fp32", default_image_count=1, extensions=extensions, max_extensions=2
    )
    api = make_api(Conductor(LocalStage(replica), None, infos), Ledger(None), info)
    transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost"), replica


@pytest.fixture
def serving(
    sources: dict[str, ModelSource], loras: tuple[ExtensionSource, ...]
) -> Iterator[Serving]:
    """Make services by `start`, each with the models of these names, and close them afterwards."""
    replicas: list[StageReplica] = []

    def serve(
        *names: str, room: int = 1, lora_room: int = 2, **more: ModelSource
    ) -> tuple[httpx.AsyncClient, StageReplica]:
        models = [(sources | more)[name] for name in names]
        client, replica = start(models, loras, room=room, lora_room=lora_room)
        replicas.append(replica)
        return client, replica

    yield serve
    for replica in replicas:
        replica.close()


def request(model: str, seed: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "a red circle", "seed": seed, "steps": 3, "model": model} | more


async def painted(client: httpx.AsyncClient, body: dict[str, Any], route: str = "/generate") -> str:
    answer = await client.post(route, json=body, timeout=120)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["images"][0])


CROWD = [
    request(model, seed, **more)
    for seed, more in ((1, {}), (2, {"steps": 4}), (3, {"guidanceScale": 1, "sampler": "euler_a"}))
    for model in ("demo", "tune")
]


def worn(*names: str) -> dict[str, Any]:
    return {"loras": [{"name": name, "weight": 1.2} for name in names]}


DRESSED = [
    request(model, seed, **worn(*names), **more)
    for seed, names, more in (
        (1, (), {}),
        (1, ("ink",), {}),
        (1, ("oil",), {"steps": 4}),
        (1, ("ink", "oil"), {}),
        (2, ("ink",), {"guidanceScale": 1, "sampler": "euler_a"}),
    )
    for model in ("demo", "tune")
]


async def alone(serving: Serving, bodies: Sequence[dict[str, Any]]) -> list[str]:
    """Return the images of requests, made one after the other, each with its model only."""
    clients = {model: serving(model)[0] for model in ("demo", "tune")}
    return [await painted(clients[body["model"]], body) for body in bodies]


@pytest.mark.long  # the engine's own tests change models between images too
@pytest.mark.parametrize("room", [1, 2])
async def test_two_models_requested_for_at_once_each_give_their_own_bytes(
    serving: Serving, room: int
) -> None:
    expected = await alone(serving, CROWD)
    client, replica = serving("demo", "tune", room=room)
    for _ in range(2):
        together = await asyncio.gather(*(painted(client, body) for body in CROWD))
        assert together == expected
    assert len(set(together)) == len(CROWD)
    assert len((await replica.stats()).engine.models) == room


async def test_a_picture_asks_again_for_its_own_model(serving: Serving) -> None:
    client, _ = serving("demo", "tune")
    first = await painted(client, request("tune", 4))
    with Image.open(BytesIO(base64.b64decode(first))) as picture:
        record = json.loads(picture.info["aura"])
        assert "Model: tune" in picture.info["parameters"]
    await painted(client, request("demo", 4))
    assert await painted(client, record["request"], record["route"]) == first


@pytest.mark.long
async def test_refining_by_model_path_is_that_model_s_work(serving: Serving) -> None:
    client, _ = serving("demo", "tune")
    base = await painted(client, request("demo", 5))
    body = {"images": [base], "prompt": "a red circle", "seed": 5, "steps": 6}
    paths = [{"config": {"modelPath": name}} for name in ("demo", "tune", "demo")]
    source, other, again = [await painted(client, body | path, "/refine") for path in paths]
    assert source == again != other


async def test_a_model_whose_files_are_gone_ends_its_own_requests_alone(
    serving: Serving, sources: dict[str, ModelSource], tmp_path: Path
) -> None:
    file = sources["tune"].path
    assert file is not None
    fading = tmp_path / "fading.safetensors"
    fading.write_bytes(file.read_bytes())
    tune = replace(sources["tune"], name="fading", path=fading)
    client, replica = serving("demo", "fading", fading=tune)
    fading.unlink()
    answers = await asyncio.gather(
        *(client.post("/generate", json=request(name, 6)) for name in ("demo", "fading"))
    )
    assert [answer.status_code for answer in answers] == [201, 503]
    error = answers[1].json()["error"]
    assert error["code"] == "MODEL_UNAVAILABLE"
    assert "fading" in error["message"]
    assert str(tmp_path) not in answers[1].text
    replica.check_health()
    assert await painted(client, request("demo", 6)) == answers[0].json()["images"][0]


@pytest.mark.long  # the engine's own tests change LoRAs between images too
@pytest.mark.parametrize(("room", "lora_room"), [(1, 2), (2, 1)])
async def test_two_models_and_two_loras_requested_for_at_once_each_give_their_own_bytes(
    serving: Serving, room: int, lora_room: int
) -> None:
    expected = await alone(serving, DRESSED)
    client, _ = serving("demo", "tune", room=room, lora_room=lora_room)
    together = await asyncio.gather(*(painted(client, body) for body in DRESSED))
    assert together == expected
    assert len(set(together)) == len(DRESSED)


async def test_a_picture_asks_again_for_what_it_wore(serving: Serving) -> None:
    client, _ = serving("demo")
    first = await painted(
        client, request("demo", 4) | {"loras": [{"name": "oil"}, {"name": "own"}]}
    )
    with Image.open(BytesIO(base64.b64decode(first))) as picture:
        record = json.loads(picture.info["aura"])
        assert "a red circle <lora:oil:0.9> <lora:own:1>\n" in picture.info["parameters"]
    assert record["request"]["loras"] == [
        {"name": "oil", "weight": 0.9},
        {"name": "own", "weight": 1.0},
    ]
    assert await painted(client, record["request"], record["route"]) == first
    refining = {"images": [first], "prompt": "a red circle", "seed": 5, "steps": 6}
    plain = await painted(client, refining, "/refine")
    assert await painted(client, refining | worn("own"), "/refine") != plain


@pytest.mark.parametrize(
    ("named", "status", "message"),
    [
        (
            [{"name": "ink"}, {"name": "/etc/passwd"}],
            404,
            "loras.1.name is unknown. Available: ink, oil, own",
        ),
        (
            [{"name": "own"}],
            400,
            "loras.0.name is own, which was not made for the model tune; it fits demo",
        ),
        ([{"name": "ink"}, {"name": "ink"}], 400, "loras.1.name names ink a second time"),
        (
            [{"name": "ink", "weight": 2.5}],
            400,
            "loras.0.weight must be between -2 and 2, got 2.5",
        ),
    ],
)
async def test_a_lora_that_can_not_be_worn_is_reported(
    serving: Serving, named: list[dict[str, Any]], status: int, message: str
) -> None:
    client, _ = serving("tune")
    for route, more in (("/generate", {}), ("/refine", {"images": ["x"]})):
        body = {"prompt": "a red circle", "model": "tune", "loras": named} | more
        answer = await client.post(route, json=body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
