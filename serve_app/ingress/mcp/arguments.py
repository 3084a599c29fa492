"""The arguments of the tools, and their translation into the values of `generation.py`.

Names are snake_case, as tools have them. Values are read leniently: a language model that writes
"20" means 20, and null means the same as absent. An unknown argument is an error that names it.
"""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.field_docs import NATIVE
from serve_app.ingress.fields import (
    AspectRatio,
    Guidance,
    Prompt,
    Range,
    SamplerName,
    Seed,
    Steps,
    Strength,
    Timeout,
    Weight,
)
from serve_app.ingress.generation import DEFAULT_STRENGTH, GenerationRequest, RefinementRequest
from serve_app.ingress.lookup import ExtensionChoice, find_model
from serve_app.ingress.stated_fields import stated_fields

MAX_IMAGES = 8
MAX_LORAS = 8
MAX_WAIT_S = 600
DEFAULT_WAIT_S = 50  # many clients give up on a tool after a minute
WIRE_NAMES = {
    "guidance": "guidance_scale",
    "timeout_s": "timeout_seconds",
    "aspect": "aspect_ratio",
}
_DIFFUSION_FIELDS = (
    *("negative_prompt", "seed", "steps", "guidance_scale", "sampler", "loras", "refine"),
    "strength",
)


def _few(loras: Any) -> Any:
    """Return LoRAs that are few enough to be worth a look at each."""
    if isinstance(loras, dict) and len(loras) > MAX_LORAS:
        raise ValueError(f"must have at most {MAX_LORAS} entries, got {len(loras)}")
    return loras


_Loras = Annotated[dict[str, Weight], Field(max_length=MAX_LORAS), BeforeValidator(_few)]


def _doc(name: str) -> FieldInfo:
    """Return what the native field of a name means."""
    info: FieldInfo = Field(description=NATIVE[name].meaning)
    return info


class Arguments(BaseModel):
    """The arguments of a tool."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, arguments: Any) -> Any:
        """Leave out what is null: some clients name every argument."""
        if not isinstance(arguments, dict):
            return arguments
        return {name: value for name, value in arguments.items() if value is not None}


class NoArguments(Arguments):
    """A tool that takes nothing."""


class JobArguments(Arguments):
    """A tool that is about a job."""

    job_id: Annotated[str, Field(description="The job_id of an answer.")]


class StatusArguments(JobArguments):
    """`job_status`."""

    wait_seconds: Annotated[
        float,
        Range(0, MAX_WAIT_S),
        Field(description="Seconds to wait for the end of the job before the answer."),
    ] = 0


class DrawingArguments(Arguments):
    """What `generate` and `refine` share."""

    negative_prompt: Annotated[str | None, _doc("negativePrompt")] = None
    image_count: Annotated[int, Range(1, MAX_IMAGES), Field(description="Number of images.")] = 1
    seed: Annotated[Seed | None, _doc("seed")] = None
    steps: Annotated[Steps | None, _doc("steps")] = None
    guidance_scale: Annotated[
        Guidance | None,
        Field(
            description="Classifier-free guidance scale: how strongly the prompt is enforced. At 1 "
            "or below guidance is off. Default: the model's own, else 6.9."
        ),
    ] = None
    sampler: Annotated[
        SamplerName | None,
        WithJsonSchema({"type": "string", "enum": [sampler.value for sampler in Sampler]}),
        _doc("sampler"),
    ] = None
    model: Annotated[
        str | None, Field(description="Name of a model, as list_models has it. Default: the first.")
    ] = None
    loras: Annotated[
        _Loras,
        Field(description="Weights of LoRAs, by their names as list_models has them."),
    ] = {}
    timeout_seconds: Annotated[Timeout | None, _doc("timeoutSeconds")] = None
    wait_seconds: Annotated[
        float,
        Range(0, MAX_WAIT_S),
        Field(
            description="Seconds to wait for the images. Then the answer has the job_id alone, and "
            "job_status has the images once they are done."
        ),
    ] = DEFAULT_WAIT_S

    @property
    def identity(self) -> str:
        """The text of what the images are."""
        return self.model_dump_json(exclude={"wait_seconds"})

    def common_fields(self, info: ServiceInfo) -> dict[str, Any]:
        """Return the fields of a `CommonRequest`. Raises `InvalidRequest` or `ModelNotFound`."""
        _check_length("negative_prompt", self.negative_prompt, info)
        return {
            "negative_prompt": self.negative_prompt,
            "image_count": self.image_count,
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance_scale,
            "sampler": self.sampler,
            "model": find_model(info, self.model).name,
            "extensions": tuple(
                ExtensionChoice(name, weight, LORA) for name, weight in self.loras.items()
            ),
            "timeout_s": self.timeout_seconds,
            "diffusion_fields": stated_fields(self, _DIFFUSION_FIELDS),
        }


class GenerateArguments(DrawingArguments):
    """`generate`."""

    prompt: Annotated[Prompt, _doc("prompt")]
    aspect_ratio: Annotated[AspectRatio, _doc("aspectRatio")] = "Auto"
    width: Annotated[
        int | None, Field(description="Width in pixels; needs height. Default: by aspect_ratio.")
    ] = None
    height: Annotated[
        int | None, Field(description="Height in pixels; needs width. Default: by aspect_ratio.")
    ] = None
    refine: Annotated[bool | None, _doc("refine")] = None

    def to_domain(self, info: ServiceInfo) -> GenerationRequest:
        """Return the request in the domain's words. Raises `InvalidRequest` or `ModelNotFound`."""
        _check_length("prompt", self.prompt, info)
        return GenerationRequest(
            prompt=self.prompt,
            aspect=self.aspect_ratio,
            width=self.width,
            height=self.height,
            refine=self.refine,
            **self.common_fields(info),
        )


class RefineArguments(DrawingArguments):
    """`refine`: an image of an earlier job, or a file, and what to change."""

    prompt: Annotated[
        Prompt, Field(description="What the new image shows: all of it, not only what changes.")
    ]
    job_id: Annotated[
        str | None, Field(description="The job whose image is to be changed; see image_number.")
    ] = None
    image_number: Annotated[
        int,
        Range(0, MAX_IMAGES - 1),
        Field(description="Which image of that job, counted from 0."),
    ] = 0
    image: Annotated[
        str | None,
        Field(description="In place of job_id: a PNG, JPEG or WebP file in base64 or a data URI."),
    ] = None  # on the wire; `messages` takes its content out before anything else is read
    strength: Annotated[Strength, _doc("strength")] = DEFAULT_STRENGTH

    def to_domain(self, info: ServiceInfo) -> RefinementRequest:
        """Return the request in the domain's words, without its file.

        Raises `InvalidRequest` or `ModelNotFound`.
        """
        _check_length("prompt", self.prompt, info)
        if (self.image is None) == (self.job_id is None):
            raise InvalidRequest("job_id", "or image is required, and not both")
        return RefinementRequest(
            prompt=self.prompt, strength=self.strength, **self.common_fields(info)
        )


def input_schema(arguments: type[Arguments], info: ServiceInfo) -> dict[str, Any]:
    """Return the JSON Schema of a tool's arguments, with the limits of this service.

    What may be left out is not said to be null too: some clients understand no `anyOf`.
    """
    schema = arguments.model_json_schema()
    fields: dict[str, dict[str, Any]] = schema.get("properties", {})
    for field in fields.values():
        field.pop("title", None)
        branches = field.pop("anyOf", [])
        field |= next((b for b in branches if b.get("type") != "null"), {})
        if field.get("default", "") is None:
            del field["default"]
    for name in {"prompt", "negative_prompt"} & fields.keys():
        fields[name]["maxLength"] = info.max_prompt_chars
    if "model" in fields:
        fields["model"]["enum"] = list(info.model_names)
    for side in {"width", "height"} & fields.keys():
        sizes = [model.sizes for model in info.models]
        fields[side] |= {
            "minimum": min(rules.min_side for rules in sizes),
            "maximum": max(rules.max_side for rules in sizes),
            "multipleOf": 8,
        }
    return {
        "type": "object",
        "properties": fields,
        "required": schema.get("required", []),
        "additionalProperties": False,
    }


def _check_length(name: str, prompt: str | None, info: ServiceInfo) -> None:
    limit = info.max_prompt_chars
    if prompt is not None and len(prompt) > limit:
        raise InvalidRequest(name, f"must have at most {limit} characters, got {len(prompt)}")
