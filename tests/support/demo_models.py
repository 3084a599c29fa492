"""What tests share about the demo's models: how many images step together, and fresh engines."""

from collections.abc import Callable

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.engine import Engine

IMAGES = 4  # that step together in strict mode
Engines = Callable[..., dict[Stage, Engine]]  # of a mode, with or without refiner
