"""`aura generate`: images without a server, by the same engine.

The options become a job just as a request to /generate does. Under the same numeric profile
(MODEL_CPU_THREADS, and as many images as the service steps together) the file has the same bytes
as the service's. No Ray; torch, whose import takes seconds, only once the options, the settings
and the models have been checked.
"""

import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from rich.markup import escape

from serve_app.cli.console import OK, REFUSED, console, print_error, print_warning
from serve_app.config.catalog import ModelCatalog, find_checkpoints, service_info
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import SEED_RANGE
from serve_app.core.errors import AuraError, CallerError, InvalidRequest
from serve_app.core.service.moderation import WordList, check_prompts
from serve_app.core.validation_message import validation_message
from serve_app.ingress.generation import plan_job
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.native.rerun import GENERATE
from serve_app.ingress.native.schemas import WIRE_NAMES, GenerateRequest, extension_fields

_HELP = "See: aura generate --help"
_OPTIONS = {"imageCount": "--count", "loras": "--lora", "prompt": "prompt"}


def generate(fields: Mapping[str, Any], output: Path) -> int:
    """Generate images, write them, print their paths, and return the exit code.

    `fields` are those of a request to /generate, with each extension as "name" or "name:weight",
    and the guidance interval as "low:high"; None means not given. If there are several images, each
    gets its number before the file's suffix.
    """
    logging.getLogger("aura.engine").addFilter(_is_not_shown)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        settings = Settings.read()
        catalog = find_checkpoints(settings)
        job = _plan(given, settings, catalog)
        for warning in job.warnings:
            print_warning(warning)
        from serve_app.cli.local_images import write_images

        for path in write_images(job, catalog, settings, output):
            console.print(f"[bold]{escape(str(path))}[/]", soft_wrap=True)
    except CallerError as error:
        if error.subject:
            remedy = error.remedy or _HELP
            error = error.about(_option(error.subject, given), remedy=remedy)
        print_error(error)
        return REFUSED
    except (AuraError, OSError) as error:
        print_error(error)
        return REFUSED
    return OK


def _is_not_shown(record: logging.LogRecord) -> bool:
    """Return whether a log record tells more than the sentence that an error ends with here."""
    return not (record.exc_info and isinstance(record.exc_info[1], AuraError))


def _option(path: str, given: Mapping[str, Any]) -> str:
    """Return the option for a field of the request, and which of its values is meant.

    That of `loras.0.weight` is `--lora ink:3`, where the first --lora is `ink:3`.
    """
    name, *positions = path.split(".")
    name = WIRE_NAMES.get(name, name)
    option = _OPTIONS.get(name) or "--" + re.sub("([A-Z])", r"-\1", name).lower()
    return f"{option} {given[name][int(positions[0])]}" if positions else option


def _plan(fields: Mapping[str, Any], settings: Settings, catalog: ModelCatalog) -> GenerationJob:
    """Return the job that the options ask for; it is the same on every device.

    Raises `CallerError`, whose subject is a field of the request.
    """
    info = service_info(settings, catalog, settings.model_device)
    request = _request(fields).to_domain(info)
    job = plan_job(request, [], info, secrets.randbelow(SEED_RANGE[1] + 1), GENERATE)
    words = WordList(settings.blocked_words())
    check_prompts(words, (text for image in job.images for text in image.spec.prompt_texts))
    return job


def _request(fields: Mapping[str, Any]) -> GenerateRequest:
    extensions = {
        field: [_extension(f"{field}.{n}", text) for n, text in enumerate(fields.get(field, ()))]
        for field in map(to_camel, extension_fields(GenerateRequest))
    }
    if (interval := fields.get("guidanceInterval")) is not None:
        fields = {**fields, "guidanceInterval": _interval(interval)}
    try:
        return GenerateRequest.model_validate({**fields, **extensions})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        path = "guidanceInterval" if path.startswith("guidanceInterval") else path
        raise InvalidRequest(path, validation_message(first)) from None


def _interval(text: str) -> list[float]:
    """Return the noise levels of low:high."""
    try:
        return [float(sigma) for sigma in text.split(":")]
    except ValueError:
        raise InvalidRequest("guidanceInterval", "must be low:high, as in 0.28:5.42") from None


def _extension(path: str, text: str) -> dict[str, Any]:
    """Return the extension of a request for a name or name:weight."""
    name, colon, weight = text.partition(":")
    try:
        if name:
            return {"name": name, "weight": float(weight) if colon else None}
    except ValueError:
        pass
    raise InvalidRequest(path, "must be name or name:weight")
