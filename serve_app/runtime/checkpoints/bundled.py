"""The demo checkpoint, which ships inside the package. No torch.

Its weights are described in the README.md of each folder.
"""

from pathlib import Path

from serve_app.core.diffusion.spec import Stage

WEIGHTS_FOLDER = Path(__file__).parents[2] / "demo" / "weights"
FOLDER_NAMES = {Stage.BASE: "demo", Stage.REFINER: "demo-refiner"}


def demo_folder(stage: Stage) -> Path:
    """Return the diffusers folder of one stage of the demo."""
    return WEIGHTS_FOLDER / FOLDER_NAMES[stage]
