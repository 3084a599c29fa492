"""The JSON of the A1111 routes: the web UI's names, with its readiness to take what it gets.

Null means the same as absent, numbers may be text, and unknown fields are ignored, as the clients
of that API expect. `unserved.py` refuses what would change the image and can't be done.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.a1111.loose_fields import LooseNumber, Seed, Switch
from serve_app.ingress.a1111.names import checkpoint_name, read_sampler
from serve_app.ingress.fields import Fraction, Guidance, Prompt, Range, Steps, Strength
from serve_app.ingress.generation import (
    DEFAULT_HANDOFF,
    GenerationRequest,
    RefinementRequest,
)
from serve_app.ingress.image_input import InputFiles
from serve_app.ingress.input_file import InputFile
from serve_app.ingress.stated_fields import stated_fields

PREFIX = "/sdapi/v1"
TXT2IMG, IMG2IMG = f"{PREFIX}/txt2img", f"{PREFIX}/img2img"
MAX_PROMPT_CHARS = 4000
MAX_IMAGES = 8  # of one request: batch_size x n_iter
WIRE_NAMES = {  # the domain's fields whose names differ on the wire
    "guidance": "cfg_scale",
    "sampler": "sampler_name",
    "image_count": "batch_size",
    "strength": "denoising_strength",
    "handoff": "refiner_switch_at",
    "model": "override_settings.sd_model_checkpoint",
    "extensions": "prompt",
    "loras": "prompt",
}
_DENOISING_STRENGTH = 0.75  # the web UI's default
_RESIZE_MODES = {  # the web UI's numbers
    0: ResizeMode.STRETCH,
    1: ResizeMode.CROP,
    2: ResizeMode.PAD,
}
_OFF = "none"  # what the web UI calls a refiner that is none, in any case of letters
_OWN = ("automatic", "none")  # the model's own sampler or schedule type, likewise
_DIFFUSION_FIELDS: Mapping[str, tuple[Any, ...]] = {  # with the values that ask for nothing
    "seed": (),
    "negative_prompt": (),
    "steps": (),
    "cfg_scale": (),
    "sampler_name": _OWN,
    "sampler_index": _OWN,
    "scheduler": _OWN,
    "refiner_checkpoint": (_OFF,),
    "refiner_switch_at": (DEFAULT_HANDOFF,),
    "denoising_strength": (_DENOISING_STRENGTH,),
}


def _folded(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


Count = Annotated[int, Range(1, MAX_IMAGES)]
Side = Annotated[int, Range(8, 16384)]
ResizeNumber = Annotated[int, Range(0, 3)]


class LooseModel(BaseModel):
    """A body of this API."""

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )
    file_fields: ClassVar[frozenset[str]] = frozenset()  # lists of `InputFile`, on the wire


class ImagesRequest(LooseModel):
    """The fields that both routes take, and that have an effect."""

    prompt: Annotated[Prompt, Field(max_length=MAX_PROMPT_CHARS)]
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    seed: Seed = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: Annotated[Count | None, LooseNumber()] = None
    n_iter: Annotated[Count | None, LooseNumber()] = None
    steps: Annotated[Steps | None, LooseNumber()] = None
    cfg_scale: Annotated[Guidance | None, LooseNumber()] = None
    width: Annotated[Side | None, LooseNumber()] = None
    height: Annotated[Side | None, LooseNumber()] = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: Annotated[Fraction | None, LooseNumber()] = None
    override_settings: dict[str, Any] | None = None
    send_images: Switch = None

    @property
    def identity(self) -> str:
        """The text of what the images are, whether or not they are sent."""
        return self.model_dump_json(exclude={"send_images", *(self.model_extra or ())})

    @property
    def image_count(self) -> int:
        """The number of images. Raises `InvalidRequest` for too many."""
        count = (self.batch_size or 1) * (self.n_iter or 1)
        if count > MAX_IMAGES:
            raise InvalidRequest(
                "batch_size", f"times n_iter must be at most {MAX_IMAGES}, got {count}"
            )
        return count

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that this request alone is made with, if it names one."""
        name = (self.override_settings or {}).get("sd_model_checkpoint")
        return checkpoint_name(str(name)) if name else None

    def size_for(self, model: ModelInfo) -> tuple[int, int] | None:
        """Return the legal size nearest to the one asked for; None if there is none.

        One of the two sides makes a square.
        """
        if self.width is None and self.height is None:
            return None
        width, height = self.width or self.height or 0, self.height or self.width or 0
        return model.sizes.scaled(width, height)

    def common_fields(self, model: ModelInfo, info: ServiceInfo) -> dict[str, Any]:
        """Return what both requests say in the domain's words. Raises `InvalidRequest`."""
        handoff = self.refiner_switch_at
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt or None,
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.cfg_scale,
            "sampler": read_sampler(
                self.sampler_name or self.sampler_index, self.scheduler, model.defaults.sampler
            ),
            "image_count": self.image_count,
            "model": model.name,
            "refine": self._refine(info),
            "handoff": DEFAULT_HANDOFF if handoff is None else handoff,
            "diffusion_fields": self._diffusion_fields,
        }

    @property
    def _diffusion_fields(self) -> tuple[str, ...]:
        """The fields that ask for something that only models of diffusion have."""
        stated = stated_fields(self, _DIFFUSION_FIELDS)
        return tuple(n for n in stated if _folded(getattr(self, n)) not in _DIFFUSION_FIELDS[n])

    def _refine(self, info: ServiceInfo) -> bool | None:
        """Return whether the refiner is to be used; None leaves it to the service."""
        name = self.refiner_checkpoint
        if not name:
            return None
        if name.casefold() == _OFF:
            return False
        if not info.is_refiner(checkpoint_name(name)):
            known = f"{info.refiner} or None" if info.refiner else "None: no refiner is configured"
            raise InvalidRequest("refiner_checkpoint", f"must be {known}")
        return True


class Txt2ImgRequest(ImagesRequest):
    """POST /sdapi/v1/txt2img."""

    def to_domain(self, model: ModelInfo, info: ServiceInfo) -> GenerationRequest:
        """Return the request in the domain's words. Raises `InvalidRequest`."""
        width, height = self.size_for(model) or (None, None)
        return GenerationRequest(**self.common_fields(model, info), width=width, height=height)


class Img2ImgRequest(ImagesRequest):
    """POST /sdapi/v1/img2img."""

    file_fields = frozenset({"init_images"})
    init_images: Annotated[list[InputFile], Field(min_length=1, max_length=MAX_IMAGES)]
    denoising_strength: Annotated[Strength | None, LooseNumber()] = None
    resize_mode: Annotated[ResizeNumber | None, LooseNumber()] = None

    @property
    def input_files(self) -> list[InputFiles]:
        """The base images."""
        return [InputFiles(image) for image in self.init_images]

    def to_domain(self, model: ModelInfo, info: ServiceInfo) -> RefinementRequest:
        """Return the request in the domain's words. Raises `InvalidRequest`."""
        strength = self.denoising_strength
        return RefinementRequest(
            **self.common_fields(model, info),
            strength=_DENOISING_STRENGTH if strength is None else strength,
            target_size=self.size_for(model),
            resize_mode=self._resize_mode(),
        )

    def _resize_mode(self) -> ResizeMode:
        mode = self.resize_mode or 0
        if mode not in _RESIZE_MODES:
            raise InvalidRequest(
                "resize_mode", f"must be 0, 1 or 2, got {mode}: latent upscaling is not offered"
            )
        return _RESIZE_MODES[mode]


class PngInfoRequest(LooseModel):
    """POST /sdapi/v1/png-info."""

    image: str
