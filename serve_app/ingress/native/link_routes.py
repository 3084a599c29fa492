"""GET /images/{job}/{file}: an image behind a signed link, without a key."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from serve_app.core.service.job_errors import JobNotFound
from serve_app.ingress.door import route_name
from serve_app.ingress.image_links import LINKS, ImageFormat, LinkedImage
from serve_app.ingress.native.response_schemas import ErrorEnvelope
from serve_app.ingress.openapi import error_responses
from serve_app.ingress.responses import converted
from serve_app.ingress.services import Services

_RESPONSES = error_responses(400, 403, 404, 503, model=ErrorEnvelope)
_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The image",
        "content": {
            f"image/{format}": {"schema": {"type": "string", "format": "binary"}}
            for format in ("png", "jpeg", "webp")
        },
    }
}
_HEADERS = {"Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer"}

router = APIRouter(tags=["images"], generate_unique_id_function=route_name)


class LinkQuery(BaseModel):
    """What a link is signed for."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    quality: int = Field(ge=0, le=100, description="Quality of JPEG and WebP in percent")
    expires: int = Field(ge=0, description="When the link expires, in seconds since 1970")
    signature: str = Field(max_length=64, description="What says that the link is ours")


@router.get(LINKS + "{job}/{number}.{format}", responses=_FILES | _RESPONSES)
async def linked_image(
    job: Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,64}$", description="Id of the job")],
    number: Annotated[int, Path(ge=0, le=99, description="Number of the image, from 0")],
    format: Annotated[ImageFormat, Path(description="Format of the file")],
    query: Annotated[LinkQuery, Query()],
    request: Request,
    services: Services,
) -> Response:
    """Return an image of a job, by a link that this service has signed."""
    image = LinkedImage(job, number, format, query.quality, query.expires)
    await services.links.check(image, query.signature)
    result = await services.jobs.linked_result(job)
    if number >= len(result.pngs):
        raise JobNotFound("the job has no such image")
    png = result.pngs[number]
    file = png
    if format != "png":
        file = await services.write(converted, png, format, query.quality)
    return Response(file, media_type=f"image/{format}", headers=_HEADERS)
