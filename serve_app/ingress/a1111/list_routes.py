"""The A1111 routes that list what the service has, and its options."""

from typing import Any

import psutil
from fastapi import APIRouter, Request
from pydantic import ConfigDict

from serve_app.core.errors import InvalidImage
from serve_app.ingress.a1111 import catalog
from serve_app.ingress.a1111.names import checkpoint_name
from serve_app.ingress.a1111.remembered import (
    choose_checkpoint,
    chosen_checkpoint,
    model_by_choice,
)
from serve_app.ingress.a1111.response_schemas import A1111Error, PngInfoResponse
from serve_app.ingress.a1111.schemas import PREFIX, LooseModel, PngInfoRequest
from serve_app.ingress.a1111.unserved import check_options
from serve_app.ingress.containers import png
from serve_app.ingress.data_uri import read_data
from serve_app.ingress.door import route_name
from serve_app.ingress.lookup import find_model
from serve_app.ingress.metadata.infotext import read_infotext
from serve_app.ingress.metadata.record import INFOTEXT
from serve_app.ingress.openapi import error_responses
from serve_app.ingress.services import Services
from serve_app.ingress.strict_json import StrictRoute

_LISTS = error_responses(401, 403, 406, model=A1111Error)
_OPTIONS = error_responses(400, 401, 403, 404, 406, 413, 415, 503, model=A1111Error)
_Entries = list[dict[str, Any]]

router = APIRouter(
    prefix=PREFIX,
    route_class=StrictRoute,
    tags=["A1111 API"],
    generate_unique_id_function=route_name,
)


class OptionsRequest(LooseModel):
    """POST /sdapi/v1/options: the checkpoint is remembered, all other options change nothing."""

    model_config = ConfigDict(extra="allow")
    sd_model_checkpoint: str | None = None


@router.get("/options", responses=_OPTIONS)
async def get_options(request: Request, services: Services) -> dict[str, Any]:
    """Return the web UI's options, with the checkpoint that the caller has chosen."""
    chosen = await chosen_checkpoint(request, services)
    model, _ = model_by_choice(chosen, services.info)
    return catalog.options(model)


@router.post("/options", responses=_OPTIONS)
async def set_options(body: OptionsRequest, request: Request, services: Services) -> None:
    """Remember the checkpoint for the caller's own requests; clients send back all options."""
    check_options(body.model_extra or {})
    if body.sd_model_checkpoint:
        name = checkpoint_name(body.sd_model_checkpoint)
        model = find_model(services.info, name, "sd_model_checkpoint")
        await choose_checkpoint(model.name, request, services)


@router.get("/sd-models", responses=_LISTS)
async def list_checkpoints(services: Services) -> _Entries:
    """List the checkpoints."""
    return catalog.checkpoints(services.info)


@router.get("/samplers", responses=_LISTS)
async def list_samplers() -> _Entries:
    """List the samplers."""
    return catalog.samplers()


@router.get("/schedulers", responses=_LISTS)
async def list_schedulers() -> _Entries:
    """List the schedule types."""
    return catalog.schedulers()


@router.get("/upscalers", responses=_LISTS)
async def list_upscalers() -> _Entries:
    """List the upscalers: none."""
    return catalog.upscalers()


@router.get("/loras", responses=_LISTS)
async def list_loras(services: Services) -> _Entries:
    """List the LoRAs, as prompts name them."""
    return catalog.loras(services.info)


@router.get("/embeddings", responses=_LISTS)
async def list_embeddings() -> dict[str, Any]:
    """List the embeddings: none."""
    return {"loaded": {}, "skipped": {}}


@router.get("/scripts", responses=_LISTS)
async def list_scripts() -> dict[str, list[str]]:
    """List the scripts: none."""
    return {"txt2img": [], "img2img": []}


@router.get("/cmd-flags", responses=_LISTS)
async def get_flags() -> dict[str, Any]:
    """Return the flags of the web UI that this service is like."""
    return {"api": True, "nowebui": True}


@router.get("/memory", responses=_LISTS)
async def get_memory() -> dict[str, Any]:
    """Return the memory of the machine that answers; GPUs have metrics of their own."""
    ram = psutil.virtual_memory()
    used = {"free": ram.available, "used": ram.total - ram.available, "total": ram.total}
    return {"ram": used, "cuda": {"error": "see the metrics of the service"}}


async def _list_nothing() -> _Entries:
    """List nothing: the service has none of these."""
    return []


for name in catalog.EMPTY_LISTS:
    router.get(f"/{name}", responses=_LISTS, name=name)(_list_nothing)


async def _refresh() -> None:
    """Do nothing: what there is stands in the service's settings."""


for name in ("refresh-checkpoints", "refresh-loras", "refresh-vae"):
    router.post(f"/{name}", responses=_LISTS, name=name)(_refresh)


@router.post(
    "/png-info",
    response_model=PngInfoResponse,
    responses=error_responses(400, 401, 403, 406, 413, 415, model=A1111Error),
)
async def read_png_info(body: PngInfoRequest, services: Services) -> dict[str, Any]:
    """Return how an image was made, by the text in its PNG."""
    return await services.write(_png_info, body.image)


def _png_info(image: str) -> dict[str, Any]:
    text = _text_of(image)
    return {
        "info": text,
        "items": {INFOTEXT: text} if text else {},
        "parameters": read_infotext(text) if text else {},
    }


def _text_of(image: str) -> str:
    """Return the text in a PNG, "" without one. Raises `InvalidImage`."""
    try:
        file = read_data(image)
    except ValueError:
        raise InvalidImage("is neither base64 nor a data URI", subject="image") from None
    if not file.startswith(png.SIGNATURE):
        return ""
    return png.split(file, INFOTEXT).record or ""
