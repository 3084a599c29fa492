"""Where the demo checkpoint lies: inside the package, so that it is there on every machine.

Knows no torch. What is in the folders is told by their README.md.
"""

from pathlib import Path

from serve_app.core.diffusion.spec import Stage

HOME = Path(__file__).parents[2] / "demo" / "weights"
NAMES = {Stage.BASE: "demo", Stage.REFINER: "demo-refiner"}


def demo_folder(stage: Stage) -> Path:
    """The diffusers folder of a stage of the demo."""
    return HOME / NAMES[stage]
