"""SDXL's own sizes, and replicas that hold its models."""

from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.checks.gpu_memory import ModelSize, Replica

BASE_PARAMETERS = {
    "unet": 2_567_463_684,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
}
REFINER_PARAMETERS = {
    "unet": 2_259_526_660,
    "vae": 83_653_863,
    "text_encoder_2": 694_659_840,
}
BASE_SIZE = ModelSize(Stage.BASE, BASE_PARAMETERS, 1024)
REFINER_SIZE = ModelSize(Stage.REFINER, REFINER_PARAMETERS, 1024)


def base(gpu_share: float = 1, models: int = 1) -> Replica:
    """Return a replica with base models, all of them loaded."""
    return Replica((BASE_SIZE,) * models, gpu_share, max_loaded=models)


def refiner(gpu_share: float = 1) -> Replica:
    """Return a replica with the refiner."""
    return Replica((REFINER_SIZE,), gpu_share)


def both(max_loaded: int = 1, bases: int = 1) -> Replica:
    """Return a replica with base models and the refiner."""
    return Replica((*(BASE_SIZE,) * bases, REFINER_SIZE), 1, max_loaded, offloaded=1)
