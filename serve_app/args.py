"""`AppArgs`: the `args:` of the application in a serve config, typed, so that a slip is an error.

Knows no Ray: Serve validates them before it calls the builder, `up` before it starts Ray.
"""

from math import ceil, floor

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Scale(BaseModel):
    """How many replicas a deployment has, and what each asks of Ray."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(0, ge=0, description="0: as many as min_replicas")
    num_cpus: float = Field(0.1, ge=0)
    num_gpus: float | None = Field(
        None, ge=0, description="None: 1 on CUDA, or a share where GPUs are few"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Scale":
        if self.max_replicas and self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        return self

    @property
    def most(self) -> int:
        """The greatest number of replicas."""
        return self.max_replicas or self.min_replicas

    def gpus_on(self, device: str, share: float) -> float:
        """How many GPUs each replica asks of Ray where stages run on cuda, mps or cpu; `share` is
        for those that don't say."""
        if self.num_gpus is not None:
            return self.num_gpus
        return share if device == "cuda" else 0


class AppArgs(BaseModel):
    """The `args:` of the application in a serve config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ingress: Scale = Scale()
    base: Scale = Scale()
    refiner: Scale = Scale()
    settings: dict[str, str] = Field(
        default_factory=dict, description="Settings of this situation; the environment wins"
    )

    def gpu_share(self, gpus: float, *, refiner: bool) -> float:
        """What part of a GPU a replica gets that doesn't say: all of one, or less where there are
        fewer GPUs than replicas at the start, or the last of them would wait for ever."""
        stages = (self.base, self.refiner) if refiner else (self.base,)
        asking = sum(stage.min_replicas for stage in stages if stage.num_gpus is None)
        taken = sum(stage.min_replicas * (stage.num_gpus or 0) for stage in stages)
        there = gpus - taken
        if asking == 0 or there <= 0 or asking <= there:
            return 1
        if there < 1:  # a part of one card, in hundredths: sums of thirds would miss it
            return floor(100 * there / asking) / 100
        return 1 / ceil(asking / int(there))
