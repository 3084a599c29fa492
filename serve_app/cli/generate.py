"""`aura generate`: images without a server, by the same engine.

The options become a job just as a request to /generate does. Under the same numeric profile
(MODEL_CPU_THREADS, and as many images as the service steps together) the file has the same bytes
as the service's. No Ray.
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serve_app.cli.console import OK, REFUSED, console, print_error, print_warning
from serve_app.config.catalog import (
    ModelCatalog,
    choose_device,
    find_checkpoints,
    max_batch_images,
    service_info,
)
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import SEED_RANGE, Stage
from serve_app.core.errors import AuraError, InvalidRequest
from serve_app.core.service.moderation import WordList, check_prompts
from serve_app.core.validation_message import validation_message
from serve_app.ingress.generation import plan_job
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.native.rerun import GENERATE
from serve_app.ingress.native.schemas import WIRE_NAMES, GenerateRequest, extension_fields
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.safety_checker import ImageSafetyChecker
from serve_app.runtime.png import encode_png

_HELP = "See: aura generate --help"
_OPTIONS = {"imageCount": "--count", "loras": "--lora", "prompt": "prompt", "--output": "--output"}


def generate(fields: Mapping[str, Any], output: Path) -> int:
    """Generate images, write them, print their paths, and return the exit code.

    `fields` are those of a request to /generate, with each extension as "name" or
    "name:weight"; None means not given. If there are several images, each gets its number before
    the file's suffix.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        for path in _generate(given, output):
            console.print(f"[bold]{escape(str(path))}[/]", soft_wrap=True)
    except InvalidRequest as error:
        print_error(InvalidRequest(_option(error.path), error.problem, remedy=_HELP))
        return REFUSED
    except (AuraError, OSError) as error:
        print_error(error)
        return REFUSED
    return OK


def _option(path: str) -> str:
    """Return the command-line option for a field of the request, such as loras.0.weight."""
    name, *_ = path.split(".")
    name = WIRE_NAMES.get(name, name)
    return _OPTIONS.get(name) or "--" + re.sub("([A-Z])", r"-\1", name).lower()


def _generate(fields: Mapping[str, Any], output: Path) -> list[Path]:
    if output.suffix.lower() != ".png" or output.is_dir():
        raise InvalidRequest("--output", f"must be the name of a .png file, got {output}")
    if not output.parent.is_dir():
        raise InvalidRequest("--output", f"must be in a folder that exists, got {output}")
    settings = Settings.read()
    device = _open_device(settings)
    catalog = find_checkpoints(settings)
    info = service_info(settings, catalog, device.torch_device.type)
    request = _request(fields).to_domain(info)
    job = plan_job(request, [], info, secrets.randbelow(SEED_RANGE[1] + 1), GENERATE)
    words = WordList(settings.blocked_words())
    check_prompts(words, (image.spec.prompt for image in job.images))
    for warning in job.warnings:
        print_warning(warning)
    with console.status("loading the models"):
        pipeline = _load_pipeline(job, catalog, settings, device)
    return _write(job, pipeline, output)


def _load_pipeline(
    job: GenerationJob, catalog: ModelCatalog, settings: Settings, device: Device
) -> LocalPipeline:
    """Load the models and extensions that a job needs."""
    bases = {model.checkpoint.name: model.checkpoint for model in catalog.models}
    base, refiner = bases[job.models[Stage.BASE]], catalog.refiner
    used = {ref.key for image in job.images for ref in image.spec.extensions}
    limit = max_batch_images(settings, device.torch_device.type)
    checker = settings.safety_checker_dir
    return LocalPipeline(
        (base, refiner) if refiner and job.refined else (base,),
        device,
        images=min(len(job.images), limit),
        strict=settings.model_determinism == "strict",
        safety=ImageSafetyChecker(checker, device) if checker else None,
        extensions={
            extension.info.key: extension.file
            for extension in catalog.extensions
            if extension.info.key in used
        },
    )


def _write(job: GenerationJob, pipeline: LocalPipeline, output: Path) -> list[Path]:
    """Generate the images of a job and write them with their metadata."""
    specs = [image.spec for image in job.images]
    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=sum(spec.nfe for spec in specs))
        pixels = pipeline.generate(
            specs,
            on_progress=lambda steps: progress.update(task, completed=steps),
            on_warning=print_warning,
        )
    paths = []
    for number, (image, rgb) in enumerate(zip(job.images, pixels, strict=True), 1):
        path = output.with_stem(f"{output.stem}-{number}") if len(pixels) > 1 else output
        profiles = {str(stage): name for stage, name in pipeline.profiles(image.spec).items()}
        path.write_bytes(job.with_metadata(image, encode_png(rgb), profiles))
        paths.append(path)
    return paths


def _request(fields: Mapping[str, Any]) -> GenerateRequest:
    extensions = {
        field: [_extension(field, text) for text in fields.get(field, ())]
        for field in map(to_camel, extension_fields(GenerateRequest))
    }
    try:
        return GenerateRequest.model_validate({**fields, **extensions})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise InvalidRequest(path, validation_message(first)) from None


def _extension(field: str, text: str) -> dict[str, Any]:
    """Return the extension of a request's field for a name or name:weight."""
    name, _, weight = text.partition(":")
    try:
        return {"name": name, "weight": float(weight) if weight else None}
    except ValueError:
        raise InvalidRequest(field, f"must be name or name:weight, got {text}") from None


def _open_device(settings: Settings) -> Device:
    """Open the device of MODEL_DEVICE; on a CPU by default with all cores.

    The default number of threads is the largest power of two, because the number decides bits.
    """
    name = settings.model_device
    if name.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = name.removeprefix("cuda:")
        name = "cuda"
    return open_device(
        choose_device(name, gpus=torch.cuda.device_count()),
        precision=settings.model_precision,
        xformers=settings.enable_xformers,
        cpu_threads=settings.model_cpu_threads or 1 << ((os.cpu_count() or 1).bit_length() - 1),
    )
