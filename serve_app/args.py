"""`AppArgs`: the `args:` of the application in a serve config, typed, so that a slip is an error.

Knows no Ray: Serve validates them before it calls the builder, `up` before it starts Ray.
"""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Scale(BaseModel):
    """How many replicas a deployment has, and what each asks of Ray."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(0, ge=0, description="0: as many as min_replicas")
    num_cpus: float = Field(0.1, ge=0)
    num_gpus: float | None = Field(None, ge=0, description="None: 1 on CUDA, else 0")

    @model_validator(mode="after")
    def _ordered(self) -> "Scale":
        if self.max_replicas and self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        return self

    @property
    def most(self) -> int:
        """The greatest number of replicas."""
        return self.max_replicas or self.min_replicas

    def gpus_on(self, device: str) -> float:
        """How many GPUs each replica asks of Ray where stages run on cuda, mps or cpu."""
        return float(device == "cuda") if self.num_gpus is None else self.num_gpus


class AppArgs(BaseModel):
    """The `args:` of the application in a serve config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ingress: Scale = Scale()
    base: Scale = Scale()
    refiner: Scale = Scale()
    settings: dict[str, str] = Field(
        default_factory=dict, description="Settings of this situation; the environment wins"
    )
