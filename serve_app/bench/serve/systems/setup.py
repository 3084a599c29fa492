"""`Setup`: what every system gets: the same checkpoint, threads and LoRAs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder


@dataclass(frozen=True, slots=True)
class Setup:
    """What every system gets. `folder` is for its files; `loras` are files by name."""

    folder: Path
    images: int = 4  # that may run together
    threads: int = 1  # CPU threads of the one process that has the networks
    loras: Mapping[str, Path] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's folder."""
        return demo_folder(Stage.BASE)
