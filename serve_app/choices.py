"""What the settings come to on this machine: which checkpoints, which device, which facts of both.

Knows no Ray, torch or HTTP, so that the builder and the command line may ask.
"""

import platform

from serve_app.core.errors import SettingsError
from serve_app.core.facts import ModelFacts, ServiceFacts
from serve_app.core.spec import Stage
from serve_app.demo.checkpoints import NOTICE, demo_folder
from serve_app.runtime.checkpoint import Checkpoint, check_checker, check_pair, inspect
from serve_app.runtime.licenses import license_of
from serve_app.settings import Settings


def choose_device(name: str, *, gpus: float) -> str:
    """cpu, cuda or mps, for a cluster with so many GPUs. Raises `SettingsError` for cuda:N.

    Inside a replica Ray shows only its own card, which is `cuda`; which cards Ray may use is
    decided before Ray starts.
    """
    if name.startswith("cuda:"):
        card = name.removeprefix("cuda:")
        raise SettingsError(
            f"MODEL_DEVICE={name} chooses a card of this machine, which must be done before Ray "
            f"starts: export CUDA_VISIBLE_DEVICES={card} MODEL_DEVICE=cuda, or start with: "
            "python -m serve_app up"
        )
    if name != "auto":
        return name
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "mps"
    return "cuda" if gpus > 0 else "cpu"


def find_checkpoints(settings: Settings) -> tuple[Checkpoint, Checkpoint | None]:
    """Base and refiner as the settings have them; the demo's when none is set.

    Raises `OperatorError` when a folder, the safety checker's too, is not a whole checkpoint, or
    the two don't fit together.
    """
    if settings.safety_checker_dir:
        check_checker(settings.safety_checker_dir)
    base_folder = settings.model_checkpoint_dir
    refiner_folder = settings.model_refiner_checkpoint_dir
    if base_folder is None:
        if refiner_folder is not None:
            raise SettingsError(
                f"MODEL_REFINER_CHECKPOINT_DIR={refiner_folder} is set without "
                "MODEL_CHECKPOINT_DIR: set the base checkpoint too"
            )
        base_folder, refiner_folder = demo_folder(Stage.BASE), demo_folder(Stage.REFINER)
    base = inspect(base_folder, Stage.BASE, configs=settings.model_config_dir)
    if refiner_folder is None:
        return base, None
    refiner = inspect(refiner_folder, Stage.REFINER)
    check_pair(base, refiner)
    return base, refiner


def service_facts(
    settings: Settings, base: Checkpoint, refiner: Checkpoint | None, device: str
) -> ServiceFacts:
    """What answers, /health and /licenses say of the service."""
    filters = {"words": settings.safety_words_file, "pictures": settings.safety_checker_dir}
    return ServiceFacts(
        models=(ModelFacts(base.name, base.native, base.noise, base.defaults),),
        refiner=refiner.name if refiner else None,
        device=device,
        precision=settings.model_precision or ("fp32" if device == "cpu" else "fp16"),
        image_count=settings.image_count,
        notices=() if settings.model_checkpoint_dir else (NOTICE,),
        licenses=tuple(license_of(one) for one in (base, refiner) if one),
        prompt_chars=settings.prompt_max_chars,
        filters=tuple(name for name, setting in filters.items() if setting),
        terms_required=settings.require_terms_acceptance,
    )
