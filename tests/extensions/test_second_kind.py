"""A second kind of extension, from MODELS_FILE and an HTTP body to the engine: a file reader, a
runtime class, a schema field, a registry line, and no other source file changed."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

from serve_app.config.catalog import ModelCatalog, find_checkpoints, service_info
from serve_app.config.settings import Settings
from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, SettingsError
from serve_app.core.service.info import ExtensionInfo
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.graph import extension_sources
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.model_loading import load_models
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.doctor.checks.models import check_licenses, find_listed_models, find_models
from serve_app.ingress.generation import plan_job
from serve_app.ingress.job_service import JobService
from serve_app.ingress.native.rerun import rerun_format
from serve_app.ingress.native.schemas import (
    ExtensionField,
    GenerateRequest,
    RefineRequest,
    extension_fields,
)
from serve_app.ingress.request_context import RequestContext
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS, ExtensionKindEntry
from serve_app.runtime.checkpoints.model_layers import ModelLayers
from serve_app.runtime.extensions.contract import ExtensionKind
from serve_app.runtime.networks.loading import Modules
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.lora_files import lora_file

TOY = "toy_shift"


@dataclass(frozen=True)
class ToyFile:
    """A file of the kind: its one line is the constant."""

    path: Path
    constant: float
    license: str = ""

    def misfit(self, model: ModelLayers) -> str | None:
        return None


def inspect_toy(path: Path) -> ToyFile:
    try:
        return ToyFile(path, float(path.read_text()))
    except ValueError:
        raise CheckpointError("holds no number", subject=str(path)) from None


class ToyShift:
    """Adds constants to what the UNet predicts for the rows of images, not to the padding."""

    def __init__(self, modules: Modules, files: Mapping[str, ToyFile]) -> None:
        self.attached: tuple[str, ...] = ()
        self._constants = {name: file.constant for name, file in files.items()}
        self._shift, self._num_rows = 0.0, 0
        modules.unet.register_forward_hook(self._after_unet)

    def attach(self, name: str) -> None:
        self.attached = (*self.attached, name)

    def detach(self, name: str) -> None:
        self.activate((), ())
        self.attached = tuple(attached for attached in self.attached if attached != name)

    def activate(self, refs: tuple[ExtensionRef, ...], rows: Sequence[ImageInputs]) -> None:
        assert {ref.name for ref in refs} <= set(self.attached)
        assert {ref.kind for ref in refs} <= {TOY}
        self._shift = sum(ref.weight * self._constants[ref.name] for ref in refs)
        self._num_rows = len(rows)

    def _after_unet(
        self, unet: torch.nn.Module, inputs: Any, outputs: tuple[torch.Tensor]
    ) -> tuple[torch.Tensor]:
        predicted = outputs[0].clone()
        predicted[: self._num_rows] += self._shift
        return (predicted,)


class ToyShiftKind(ExtensionKind[ToyFile]):
    work_per_pixel = 0.0

    def num_bytes(self, file: ToyFile, dtype: torch.dtype) -> int:
        return dtype.itemsize

    def open(self, modules: Modules, files: Mapping[str, ToyFile]) -> ToyShift:
        return ToyShift(modules, files)


class ToyField(ExtensionField):
    """A shift by its name in MODELS_FILE, and its weight."""

    kind = TOY


class ToyRequest(GenerateRequest):
    """POST /generate with the kind's field."""

    toy_shifts: Annotated[list[ToyField], Field(max_length=8)] = Field(default_factory=list)


KINDS = {
    **EXTENSION_KINDS,
    TOY: ExtensionKindEntry("toy_shifts", inspect_toy, f"{__name__}:ToyShiftKind"),
}
MODELS_FILE = """
loras:
  ink: {path: ink.safetensors, license: Ink Licence}
toy_shifts:
  dim: {path: dim, license: Toy Licence}
  faint: {path: dim, weight: 0.5}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("extensions")
    (folder / "dim").write_text("0.05")
    lora_file(demo_folder(Stage.BASE), folder / "ink.safetensors", seed=1)
    (folder / "models.yaml").write_text(MODELS_FILE)
    return Settings.read({"MODELS_FILE": str(folder / "models.yaml")}, folder)


@pytest.fixture(scope="module")
def catalog(settings: Settings) -> ModelCatalog:
    return find_checkpoints(settings, KINDS)


@pytest.fixture(scope="module")
def replica(catalog: ModelCatalog) -> StageReplica:
    config = cpu_stage(
        [ModelSource("demo", demo_folder(Stage.BASE))],
        extensions=extension_sources(catalog),
        max_loaded_extensions=2,
    )
    return StageReplica(config, load=lambda config: load_models(config, KINDS))


@pytest.fixture
async def client(
    replica: StageReplica, settings: Settings, catalog: ModelCatalog
) -> AsyncIterator[httpx.AsyncClient]:
    info = service_info(settings, replace(catalog, refiner=None), "cpu")
    service = JobService(Conductor(LocalStage(replica), None, info.models), Ledger(None), info)

    async def generate(request: Request) -> Response:
        body = ToyRequest.model_validate_json(await request.body())
        rerun = rerun_format("/generate", ToyRequest)
        job = plan_job(body.to_domain(info), [], info, 0, rerun)
        result = await service.run(job, RequestContext("caller", "/generate"))
        return Response(result.pngs[0], 201, media_type="image/png")

    app = Starlette(routes=[Route("/generate", generate, methods=["POST"])])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def body(**extensions: Any) -> dict[str, Any]:
    return {"prompt": "a red circle", "seed": 3, "steps": 4, "model": "demo"} | extensions


SHIFT = {"toyShifts": [{"name": "dim"}]}
HALF = {"toyShifts": [{"name": "faint"}]}  # with the weight that MODELS_FILE names
INK = {"loras": [{"name": "ink"}]}
BODIES = [
    body(),
    body(**SHIFT),
    body(toyShifts=[{"name": "dim", "weight": -1}]),
    body(**HALF),
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


def test_a_section_of_models_file_lists_a_second_kind(
    settings: Settings, catalog: ModelCatalog
) -> None:
    info = service_info(settings, catalog, "cpu")
    assert tuple(replace(extension, weights="") for extension in info.extensions) == (
        ExtensionInfo("lora", "ink", ("demo",)),
        ExtensionInfo(TOY, "dim", ("demo",)),
        ExtensionInfo(TOY, "faint", ("demo",), 0.5),
    )
    licenses = {license.model: license.name for license in info.licenses}
    assert (licenses["ink"], licenses["dim"]) == ("Ink Licence", "Toy Licence")
    assert licenses["faint"] == "not known"


def test_a_file_of_a_second_kind_that_is_unusable_is_reported_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "dim").write_text("dark")
    (tmp_path / "models.yaml").write_text("toy_shifts: {dim: {path: dim}}")
    settings = Settings.read({"MODELS_FILE": str(tmp_path / "models.yaml")}, tmp_path)
    with pytest.raises(CheckpointError) as refused:
        find_checkpoints(settings, KINDS)
    assert str(refused.value) == (
        f"MODELS_FILE={tmp_path / 'models.yaml'}: toy_shifts.dim.path={tmp_path / 'dim'} "
        "holds no number"
    )
    with pytest.raises(SettingsError, match="toy_shifts is unknown"):
        find_checkpoints(settings)


def test_the_doctor_checks_a_second_kind(settings: Settings) -> None:
    found, listed = find_listed_models(settings, find_models(settings)[0], KINDS)
    assert listed.message.endswith("adds the LoRA ink, the toy shift dim, the toy shift faint")
    licenses = check_licenses(settings, found)
    assert "the licence of the toy shift faint is unknown" in licenses.message


def test_every_kind_of_the_registry_has_a_field_in_requests_and_no_other_has() -> None:
    for request in (GenerateRequest, RefineRequest):
        kinds = {entry.kind for entry in extension_fields(request).values()}
        assert kinds == set(EXTENSION_KINDS)
