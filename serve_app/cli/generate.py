"""`generate`: pictures without a server, by the same order and the same engine.

Knows no Ray. Wishes become an order just as a request to /generate does. Under the same numeric
profile (MODEL_CPU_THREADS, and as many pictures as the service steps together) the file is the
service's own, to the byte.
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serve_app.config.catalog import choose_device, find_checkpoints, max_batch_images, service_info
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import SEED_RANGE, Stage
from serve_app.core.errors import AuraError, InvalidRequest, SafetyBlock
from serve_app.core.service.moderation import WordList
from serve_app.ingress.generation import GenerationJob, plan_generation
from serve_app.ingress.native.schemas import GENERATE, WIRE_NAMES, GenerateRequest
from serve_app.ingress.png_metadata import embed, infotext
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.safety_checker import ImageSafetyChecker
from serve_app.runtime.png import encode_png

_HELP = "see aura generate --help"
console = Console(stderr=True, highlight=False)


def generate(wishes: Mapping[str, Any], output: Path) -> int:
    """The pictures are written, and told of; the exit status.

    `wishes` are fields of a request to /generate, `loras` as "name" or "name:weight"; None means
    not wished. Several pictures get their number before the file's suffix.
    """
    try:
        for path in _draw({k: v for k, v in wishes.items() if v is not None}, output):
            console.print(f"[bold]{escape(str(path))}[/]", soft_wrap=True)
    except InvalidRequest as error:
        return _refused(
            f"{_option(WIRE_NAMES.get(error.path, error.path))} {error.problem}; {_HELP}"
        )
    except (AuraError, OSError) as error:
        return _refused(str(error))
    return 0


def _refused(sentence: str) -> int:
    console.print(f"[bold red]error[/] {escape(sentence)}", soft_wrap=True)
    return 2


def _option(field: str) -> str:
    """How the command line calls a field of the request."""
    if field in ("prompt", "--output"):
        return field
    if field.startswith("loras"):
        return "--lora"
    return "--count" if field == "imageCount" else "--" + re.sub("([A-Z])", r"-\1", field).lower()


def _draw(wishes: Mapping[str, Any], output: Path) -> list[Path]:
    if output.suffix.lower() != ".png" or output.is_dir():
        raise InvalidRequest("--output", f"must be the name of a .png file, got {output}")
    if not output.parent.is_dir():
        raise InvalidRequest("--output", f"must lie in a folder that is there, got {output}")
    settings = Settings.read()
    device = _device(settings)
    lineup = find_checkpoints(settings)
    facts = service_info(settings, lineup, device.torch_device.type)
    request = _request(wishes).to_domain(facts)
    order = plan_generation(request, facts, secrets.randbelow(SEED_RANGE[1] + 1), GENERATE)
    filtered = WordList(settings.blocked_words())
    if any(filtered.refuses_prompt(piece.spec.prompt) for piece in order.images):
        raise SafetyBlock("the safety filter refuses this prompt")
    for warning in order.warnings:
        _warn(warning)
    bases = {model.checkpoint.name: model.checkpoint for model in lineup.models}
    base, refiner = bases[order.models[Stage.BASE]], lineup.refiner
    worn = {lora.name for piece in order.images for lora in piece.spec.loras}
    with console.status("loading the models"):
        checker = settings.safety_checker_dir
        solo = LocalPipeline(
            (base, refiner) if refiner and order.refined else (base,),
            device,
            images=min(len(order.images), max_batch_images(settings, facts.device)),
            strict=settings.model_determinism == "strict",
            safety=ImageSafetyChecker(checker, device) if checker else None,
            loras={one.info.name: one.file for one in lineup.loras if one.info.name in worn},
        )
    return _write(order, solo, output)


def _write(order: GenerationJob, solo: LocalPipeline, output: Path) -> list[Path]:
    specs = [piece.spec for piece in order.images]
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=sum(spec.nfe for spec in specs))
        pictures = solo.generate(
            specs,
            on_progress=lambda steps: progress.update(task, completed=steps),
            on_warning=_warn,
        )
    paths = []
    for number, (piece, picture) in enumerate(zip(order.images, pictures, strict=True), 1):
        path = output
        if len(pictures) > 1:
            path = output.with_stem(f"{output.stem}-{number}")
        profiles = {str(stage): name for stage, name in solo.profiles(piece.spec).items()}
        text = infotext(piece.spec, order.models)
        path.write_bytes(embed(encode_png(picture), text, order.record(piece, profiles)))
        paths.append(path)
    return paths


def _warn(warning: str) -> None:
    console.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)


def _request(wishes: Mapping[str, Any]) -> GenerateRequest:
    loras = [_lora(text) for text in wishes.get("loras", ())]
    try:
        return GenerateRequest.model_validate({**wishes, "loras": loras})
    except ValidationError as error:
        first = error.errors()[0]
        told = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(".".join(map(str, first["loc"])), told) from None


def _lora(text: str) -> dict[str, Any]:
    name, _, weight = text.partition(":")
    try:
        return {"name": name, "weight": float(weight) if weight else None}
    except ValueError:
        raise InvalidRequest("loras", f"must be name or name:weight, got {text}") from None


def _device(settings: Settings) -> Device:
    """The device that the settings mean here, with all cores or their greatest power of two."""
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
