"""A second kind of extension, from an HTTP body to the engine: one runtime class, one schema field,
one registry line, and no other source file changed."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import torch
from PIL import Image
from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ExtensionInfo, ModelInfo, ServiceInfo
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ExtensionSource, ModelSource, StageConfig
from serve_app.deployments.stage_replica import StageReplica, load_models
from serve_app.ingress.generation import plan_generation
from serve_app.ingress.job_service import JobService, RequestContext
from serve_app.ingress.native.schemas import (
    ExtensionField,
    GenerateRequest,
    NamesExtensions,
    rerun_format,
)
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.extensions.registry import EXTENSION_KINDS
from serve_app.runtime.networks.loading import Modules
from tests.support.local_stage import LocalStage
from tests.support.lora_files import lora_file

TOY = "toy_shift"


class ToyShift:
    """Adds constants to what the UNet predicts, and so to the denoised latents."""

    def __init__(self, modules: Modules, files: Mapping[str, float]) -> None:
        self.attached: tuple[str, ...] = ()
        self._constants = files
        self._shift = 0.0
        modules.unet.register_forward_hook(self._after_unet)

    def attach(self, name: str) -> None:
        self.attached = (*self.attached, name)

    def detach(self, name: str) -> None:
        self.activate(())
        self.attached = tuple(attached for attached in self.attached if attached != name)

    def activate(self, refs: tuple[ExtensionRef, ...]) -> None:
        assert {ref.name for ref in refs} <= set(self.attached)
        assert {ref.kind for ref in refs} <= {TOY}
        self._shift = sum(ref.weight * self._constants[ref.name] for ref in refs)

    def _after_unet(
        self, unet: torch.nn.Module, inputs: Any, outputs: tuple[torch.Tensor]
    ) -> tuple[torch.Tensor]:
        return (outputs[0] + self._shift,)


class ToyShiftKind:
    """The registry's line: a file of the kind holds one number."""

    work_per_pixel = 0.0

    def inspect(self, path: Path) -> float:
        return float(path.read_text())

    def num_bytes(self, file: float, dtype: torch.dtype) -> int:
        return dtype.itemsize

    def open(self, modules: Modules, files: Mapping[str, float]) -> ToyShift:
        return ToyShift(modules, files)


class ToyRequest(GenerateRequest):
    """POST /generate with the kind's field."""

    toy_shifts: Annotated[list[ExtensionField], Field(max_length=8), NamesExtensions(TOY)] = Field(
        default_factory=list
    )


KINDS = {**EXTENSION_KINDS, TOY: ToyShiftKind()}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> StageReplica:
    folder, demo = tmp_path_factory.mktemp("extensions"), demo_folder(Stage.BASE)
    (folder / "dim").write_text("0.05")
    ink = lora_file(demo, folder / "ink.safetensors", seed=1)
    config = StageConfig(
        models=(ModelSource("demo", demo),),
        device="cpu",
        precision=None,
        xformers=False,
        cpu_threads=1,
        max_batch_images=2,
        strict=True,
        snapshot_interval_steps=5,
        extensions=(
            ExtensionSource("lora", "ink", ink, ("demo",)),
            ExtensionSource(TOY, "dim", folder / "dim", ("demo",)),
        ),
        max_loaded_extensions=2,
    )
    return StageReplica(config, load=lambda config: load_models(config, KINDS))


@pytest.fixture
async def client(replica: StageReplica) -> AsyncIterator[httpx.AsyncClient]:
    noise = inspect(demo_folder(Stage.BASE), Stage.BASE).noise_config
    extensions = (ExtensionInfo("lora", "ink", ("demo",)), ExtensionInfo(TOY, "dim", ("demo",)))
    models = (ModelInfo("demo", 128, noise),)
    info = ServiceInfo(
        models, None, "cpu", "fp32", default_image_count=1, extensions=extensions, max_extensions=2
    )
    service = JobService(Conductor(LocalStage(replica), None, models), Ledger(None), info)

    async def generate(request: Request) -> Response:
        body = ToyRequest.model_validate_json(await request.body())
        rerun = rerun_format("/generate", ToyRequest)
        job = plan_generation(body.to_domain(info), info, 0, rerun)
        result = await service.run(job, RequestContext("caller", "/generate"))
        return Response(result.pngs[0], 201, media_type="image/png")

    app = Starlette(routes=[Route("/generate", generate, methods=["POST"])])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def body(**extensions: Any) -> dict[str, Any]:
    return {"prompt": "a red circle", "seed": 3, "steps": 4, "model": "demo"} | extensions


SHIFT = {"toyShifts": [{"name": "dim"}]}
INK = {"loras": [{"name": "ink"}]}
BODIES = [
    body(),
    body(**SHIFT),
    body(toyShifts=[{"name": "dim", "weight": -1}]),
    body(**INK),
    body(**INK, **SHIFT),
]


async def image_of(client: httpx.AsyncClient, body: dict[str, Any]) -> bytes:
    response = await client.post("/generate", json=body, timeout=120)
    assert response.status_code == 201, response.text
    return response.content


async def test_images_of_a_second_kind_never_share_a_batch_with_others(
    client: httpx.AsyncClient,
) -> None:
    alone = [await image_of(client, body) for body in BODIES]
    assert len(set(alone)) == len(BODIES)
    together = await asyncio.gather(*(image_of(client, body) for body in [*BODIES, *BODIES]))
    assert together == alone * 2


async def test_a_second_kind_visibly_changes_the_image_and_weight_zero_does_not(
    client: httpx.AsyncClient,
) -> None:
    plain, shifted, unshifted = [
        await image_of(client, body(toyShifts=[{"name": "dim", "weight": weight}]))
        for weight in (0, 1, 0)
    ]

    def levels(png: bytes) -> torch.Tensor:
        with Image.open(BytesIO(png)) as image:
            return torch.tensor(list(image.convert("L").tobytes()), dtype=torch.float32)

    assert torch.equal(levels(plain), levels(unshifted))
    assert (levels(plain) - levels(shifted)).abs().mean() > 2


async def test_an_image_remembers_a_second_kind_and_can_be_made_again(
    client: httpx.AsyncClient,
) -> None:
    first = await image_of(client, BODIES[-1])
    with Image.open(BytesIO(first)) as image:
        request = json.loads(image.info["aura"])["request"]
        assert "a red circle <lora:ink:1> <toy_shift:dim:1>\n" in image.info["parameters"]
    assert request["toyShifts"] == [{"name": "dim", "weight": 1.0}]
    assert request["loras"] == [{"name": "ink", "weight": 1.0}]
    assert await image_of(client, request) == first


async def test_attaching_a_second_kind_is_counted_and_costed_by_kind(
    client: httpx.AsyncClient, replica: StageReplica
) -> None:
    await image_of(client, BODIES[-1])
    costs = (await replica.stats()).engine.costs.seconds_by_turn
    assert {turn.attached.kind for turn in costs if turn.attached} == {"lora", TOY}
    assert ("lora", TOY) in {turn.extensions for turn in costs}
