"""`AppArgs`: the `args:` of the application in a serve config, typed and checked.

Serve validates the args before it calls the builder, and `up` before it starts Ray. No Ray.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.config.deprecated_names import ARGS, with_current_keys


class DeploymentScale(BaseModel):
    """How many replicas a deployment has, and the resources that each requests from Ray."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(0, ge=0, description="0: the same as min_replicas")
    num_cpus: float = Field(0.1, ge=0, allow_inf_nan=False)
    num_gpus: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="None: 1 on CUDA, or a fraction if GPUs are few; 0 elsewhere",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> "DeploymentScale":
        if self.max_replicas and self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        if not self.effective_max_replicas:
            raise ValueError("min_replicas: 0 needs a max_replicas of at least 1")
        if self.num_gpus and self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError("num_gpus above 1 must be whole: a GPU can't be shared beside another")
        return self

    @property
    def effective_max_replicas(self) -> int:
        """The largest number of replicas."""
        return self.max_replicas or self.min_replicas

    @property
    def autoscales(self) -> bool:
        """Whether the number of replicas varies."""
        return self.effective_max_replicas > self.min_replicas


class AppArgs(BaseModel):
    """The `args:` of the application in a serve config."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    ingress: DeploymentScale = Field(
        DeploymentScale(), description="Without min_replicas: 2 where there are two CPUs, else 1"
    )
    base: DeploymentScale = DeploymentScale()
    refiner: DeploymentScale = DeploymentScale()
    combined: DeploymentScale | None = Field(
        None, description="One deployment for both stages, instead of base and refiner"
    )
    drain_seconds: float = Field(
        60, gt=0, le=86400, description="How long a retiring replica may finish its images"
    )
    settings: dict[str, str] = Field(
        default_factory=dict, description="Settings; the environment and .env files win"
    )

    @model_validator(mode="before")
    @classmethod
    def _rename_deprecated(cls, data: Any) -> Any:
        return with_current_keys(data, ARGS, where="args") if isinstance(data, dict) else data

    @field_validator("ingress", "base", "combined")
    @classmethod
    def _check_present(cls, scale: DeploymentScale | None) -> DeploymentScale | None:
        if scale and not scale.min_replicas:
            raise ValueError("min_replicas must be at least 1: only the refiner may have 0")
        return scale

    @model_validator(mode="after")
    def _check_combined(self) -> "AppArgs":
        if self.combined is not None and self.model_fields_set & {"base", "refiner"}:
            raise ValueError(
                "combined runs base and refiner on the same replicas, so it can't stand beside the "
                "sections base and refiner: remove those, or combined"
            )
        return self
