"""Field types that the request schemas of several doors share, with their limits in OpenAPI."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from serve_app.core.diffusion.extensions import WEIGHT_RANGE
from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.sizes import ASPECTS, RESOLUTIONS
from serve_app.core.diffusion.spec import (
    GUIDANCE_RANGE,
    SEED_RANGE,
    SIGMA_RANGE,
    STEPS_RANGE,
    StepCache,
)

MAX_TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True)
class Range:
    """The legal values of a number, both ends included, or all but the lower end."""

    low: float
    high: float
    above_low: bool = False

    def check(self, value: Any) -> Any:
        """Return the number; raise pydantic's error with the range if it lies outside."""
        if self.low <= value <= self.high and not (self.above_low and value == self.low):
            return value
        raise PydanticCustomError(
            "range",
            "must be {how} {low} and {high}, got {value}",
            {
                "how": "above" if self.above_low else "between",
                "low": f"{self.low:.10g}",
                "high": f"at most {self.high:.10g}" if self.above_low else f"{self.high:.10g}",
                "value": repr(value).removesuffix(".0"),
            },
        )

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        minimum = "exclusiveMinimum" if self.above_low else "minimum"
        return {**handler(schema), minimum: self.low, "maximum": self.high}


def _one_of(names: Iterable[str]) -> PydanticCustomError:
    return PydanticCustomError("choice", "must be one of {names}", {"names": ", ".join(names)})


def _sampler(value: Any) -> Any:
    if value not in list(Sampler):
        raise _one_of(Sampler)
    return Sampler(value)


def _resize_mode(value: Any) -> Any:
    if value not in list(ResizeMode):
        raise _one_of(ResizeMode)
    return ResizeMode(value)


def _step_cache(value: Any) -> Any:
    if value not in list(StepCache):
        raise _one_of(StepCache)
    return StepCache(value)


def _interval(sigmas: list[float]) -> list[float]:
    low, high = sigmas
    if low >= high:
        raise PydanticCustomError(
            "interval",
            "must be two noise levels, the lower one first, got {low} and {high}",
            {"low": f"{low:g}", "high": f"{high:g}"},
        )
    return sigmas


def _aspect(value: str) -> str:
    if value not in ASPECTS:
        raise _one_of(ASPECTS)
    return value


def _resolution(value: str) -> str:
    if value not in RESOLUTIONS:
        raise _one_of(RESOLUTIONS)
    return value


Prompt = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    Field(json_schema_extra={"pattern": r"\S"}),
]
Steps = Annotated[int, Range(*STEPS_RANGE)]
Guidance = Annotated[float, Range(*GUIDANCE_RANGE)]
Seed = Annotated[int, Range(*SEED_RANGE)]
Fraction = Annotated[float, Range(0, 1)]
Strength = Annotated[float, Range(0, 1, above_low=True)]
Timeout = Annotated[float, Range(0, MAX_TIMEOUT_S, above_low=True)]
Weight = Annotated[float, Range(*WEIGHT_RANGE)]
SamplerName = Annotated[Sampler, BeforeValidator(_sampler)]
StepCacheName = Annotated[StepCache, BeforeValidator(_step_cache)]
GuidanceInterval = Annotated[
    list[Annotated[float, Range(*SIGMA_RANGE)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_interval),
]
ResizeModeName = Annotated[ResizeMode, BeforeValidator(_resize_mode)]
AspectRatio = Annotated[
    str, AfterValidator(_aspect), Field(json_schema_extra={"enum": list(ASPECTS)})
]
Resolution = Annotated[
    str, AfterValidator(_resolution), Field(json_schema_extra={"enum": list(RESOLUTIONS)})
]


def as_interval(field: list[float] | None) -> tuple[float, float] | None:
    """Return the domain's value of a `GuidanceInterval`."""
    return None if field is None else (field[0], field[1])
