"""`AppArgs`: the `args:` of the application in a serve config, typed, so that a slip is an error.

Knows no Ray: Serve validates them before it calls the builder, `up` before it starts Ray.
"""

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


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
