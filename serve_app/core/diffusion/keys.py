"""Names by which one replica tells models, and batches, apart. No torch, no Ray."""

from dataclasses import dataclass
from typing import NamedTuple

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.spec import Stage


class ModelKey(NamedTuple):
    """A checkpoint of a stage, by its name; `name` is None until the sample is bound to one."""

    stage: Stage
    name: str | None = None

    def __str__(self) -> str:
        return self.name or f"the {self.stage} model"


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What must be equal in all samples that step together, and nothing else must."""

    model: ModelKey
    latent_shape: tuple[int, int]  # height and width
    chunks: int  # length of the prompts, in pieces of 75 tokens
    extensions: tuple[ExtensionRef, ...] = ()  # in the order in which they are active
    shallow: bool = False  # whether the step reuses deep features, and is another computation
