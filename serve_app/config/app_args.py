"""`AppArgs`: the `args:` of the application in a serve config, typed, so that a slip is an error.

Knows no Ray: Serve validates them before it calls the builder, `up` before it starts Ray.
"""

from math import ceil, floor

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.core.errors import SettingsError


class DeploymentScale(BaseModel):
    """How many replicas a deployment has, and what each asks of Ray."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(0, ge=0, description="0: as many as min_replicas")
    num_cpus: float = Field(0.1, ge=0, allow_inf_nan=False)
    num_gpus: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="None: 1 on CUDA, or a share where GPUs are few",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "DeploymentScale":
        if self.max_replicas and self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        if not self.max_total:
            raise ValueError("min_replicas: 0 needs a max_replicas, of 1 or more")
        if self.num_gpus and self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError("num_gpus must be whole above 1: a replica can't have parts of two")
        return self

    @property
    def max_total(self) -> int:
        """The greatest number of replicas."""
        return self.max_replicas or self.min_replicas

    @property
    def autoscales(self) -> bool:
        """Whether replicas come and go."""
        return self.max_total > self.min_replicas

    def gpus_on(self, device: str, share: float) -> float:
        """How many GPUs each replica asks of Ray where stages run on cuda, mps or cpu; `share` is
        for those that don't say."""
        if self.num_gpus is not None:
            return self.num_gpus
        return share if device == "cuda" else 0


class AppArgs(BaseModel):
    """The `args:` of the application in a serve config."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    ingress: DeploymentScale = DeploymentScale()
    base: DeploymentScale = DeploymentScale()
    refiner: DeploymentScale = DeploymentScale()
    combined: DeploymentScale | None = Field(
        None, description="One deployment for both stages, instead of base and refiner"
    )
    drain_seconds: float = Field(
        60, gt=0, le=86400, description="How long a replica that retires may finish its images"
    )
    settings: dict[str, str] = Field(
        default_factory=dict, description="Settings of this situation; the environment wins"
    )

    @field_validator("ingress", "base", "combined")
    @classmethod
    def _always_there(cls, scale: DeploymentScale | None) -> DeploymentScale | None:
        if scale and not scale.min_replicas:
            raise ValueError("min_replicas must be at least 1: the refiner alone may go to 0")
        return scale

    @model_validator(mode="after")
    def _one_way(self) -> "AppArgs":
        if self.combined is not None and self.model_fields_set & {"base", "refiner"}:
            raise ValueError(
                "combined runs base and refiner on the same replicas, so it takes the place of the "
                "sections base and refiner: remove those, or combined"
            )
        return self

    def with_defaults(self, device: str, gpus: float, *, refiner: bool) -> "AppArgs":
        """The args with all chosen that they leave open.

        Base and refiner take turns on the only card, each with all of it, unless either section
        says how else.
        """
        silent = self.base == self.refiner == DeploymentScale()
        if self.combined is None and silent and refiner and device == "cuda" and gpus == 1:
            return self.model_copy(update={"combined": DeploymentScale()})
        return self

    def scales(self, *, refiner: bool) -> tuple[DeploymentScale, ...]:
        """Those of the deployments that run the stages there are."""
        if self.combined is not None:
            return (self.combined,)
        return (self.base, self.refiner) if refiner else (self.base,)

    def gpu_share(self, gpus: float, *, refiner: bool) -> float:
        """What part of a GPU a replica gets that doesn't say: all of one, or less where there are
        fewer GPUs than replicas at the start, or the last of them would wait for ever."""
        stages = self.scales(refiner=refiner)
        asking = sum(_needed(stage) for stage in stages if stage.num_gpus is None)
        taken = sum(_needed(stage) * (stage.num_gpus or 0) for stage in stages)
        there = gpus - taken
        if asking == 0 or there <= 0 or asking <= there:
            return 1
        if there < 1:  # a part of one card, in hundredths: sums of thirds would miss it
            return floor(100 * there / asking) / 100
        return 1 / ceil(asking / int(there))

    def max_total_replicas(
        self, gpus: int | None, device: str, share: float, *, refiner: bool
    ) -> int | None:
        """How many replicas the stages whose replicas come and go may have, all together, where no
        more than so many GPUs are for the stages; None where nothing limits them.

        Raises `SettingsError` where they would not have room for one of each.
        """
        stages = self.scales(refiner=refiner)
        asked = sorted({stage.gpus_on(device, share) for stage in stages})
        if gpus is None or asked == [0]:
            return None
        if len(asked) > 1:
            raise SettingsError(
                f"TOTAL_GPUS={gpus} is shared out in whole replicas, so base and refiner must ask "
                f"for the same num_gpus, not {asked[0]:g} and {asked[1]:g}: make them equal, or "
                "empty TOTAL_GPUS",
                "TOTAL_GPUS",
            )
        room = floor(gpus / asked[0] + 1e-9)
        needed = sum(map(_needed, stages))
        if needed > room:
            raise SettingsError(
                f"TOTAL_GPUS={gpus} has room for {room} replicas of {asked[0]:g} GPUs, and the "
                f"stages need {needed}: set TOTAL_GPUS={ceil(needed * asked[0])}, or lower "
                "min_replicas or num_gpus",
                "TOTAL_GPUS",
            )
        return room - sum(stage.max_total for stage in stages if not stage.autoscales)


def _needed(stage: DeploymentScale) -> int:
    """The replicas that a stage must have room for: one at least, for it may be away for a while,
    but not for ever."""
    return max(1, stage.min_replicas)
