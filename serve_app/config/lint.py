"""`lint`: everything wrong with a serve config, with a suggestion for each misspelt key.

Serve ignores unknown keys, so a misspelt one would silently do nothing. No files, no Ray.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError

from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.serve_schema import Location, schema_errors, sections
from serve_app.config.settings import check_given, is_setting
from serve_app.core.capacity.autoscaler import ScalingTargets
from serve_app.core.errors import SettingsError
from serve_app.core.suggest import suggest
from serve_app.core.validation_message import validation_message

BUILDER = "serve_app.app:build"
POLICY = "serve_app.deployments.autoscaling:OwedWorkAutoscaler"
SECTIONS = {  # the section of args for each deployment
    "Ingress": "ingress",
    "Ledger": None,
    "BaseGenerator": "base",
    "Refiner": "refiner",
    "BaseAndRefiner": "combined",
}
_SET_IN_ARGS = ("num_replicas", "autoscaling_config", "ray_actor_options")
_ARGS_OF_SECTIONS: dict[Location, tuple[str, ...]] = {
    ("args",): tuple(AppArgs.model_fields),
    **{
        ("args", section): tuple(DeploymentScale.model_fields)
        for section in SECTIONS.values()
        if section
    },
}


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong with a serve config: where, what, and what to do about it."""

    location: Location
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{_dotted(self.location)}: {self.problem}"
        return f"{text}. {self.remedy}" if self.remedy else text


def lint(config: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield what Serve would refuse or ignore, and what this service would refuse.

    If there is nothing, `AppArgs` takes the args of our application.
    """
    for error in schema_errors(config):
        remedy = ""
        if error.is_unknown_key:
            remedy = _remedy_for_key(str(error.location[-1]), error.known_keys)
        yield ConfigProblem(error.location, error.problem, remedy)
    entries = config.get("applications")
    applications = [entry for entry in _list(entries) if isinstance(entry, dict)]
    if not any(application.get("import_path") == BUILDER for application in applications):
        paths = [str(entry["import_path"]) for entry in applications if "import_path" in entry]
        found = f"; found {', '.join(paths)}" if paths else ""
        yield ConfigProblem(("applications",), f"none has the import_path {BUILDER}{found}")
    for position, application in enumerate(_list(entries)):
        if isinstance(application, dict) and application.get("import_path") == BUILDER:
            yield from _lint_application(application, ("applications", position))


def _lint_application(application: Mapping[str, Any], at: Location) -> Iterator[ConfigProblem]:
    args = application.get("args", {})
    if isinstance(args, dict):
        problems = list(_lint_args(args, (*at, "args")))
        yield from problems or _lint_policy(application, AppArgs.model_validate(args), at)
        yield from _lint_settings(args.get("settings"), (*at, "args", "settings"))
    for position, override in enumerate(_list(application.get("deployments"))):
        if isinstance(override, dict) and isinstance(override.get("name"), str):
            yield from _lint_override(override, (*at, "deployments", position))


def _lint_args(args: Mapping[str, Any], at: Location) -> Iterator[ConfigProblem]:
    try:
        AppArgs.model_validate(args)
    except ValidationError as error:
        for entry in error.errors():
            location = (*at, *entry["loc"])
            if entry["type"] == "extra_forbidden":
                section = AppArgs if len(entry["loc"]) == 1 else DeploymentScale
                remedy = _remedy_for_key(str(entry["loc"][-1]), section.model_fields)
                yield ConfigProblem(location, "unknown key", remedy)
            else:
                value = entry["input"]
                got = f", got {value}" if isinstance(value, (int, float)) else ""
                yield ConfigProblem(location, validation_message(entry) + got)


def _lint_settings(settings: Any, at: Location) -> Iterator[ConfigProblem]:
    for name, value in settings.items() if isinstance(settings, dict) else ():
        try:
            check_given({str(name): str(value)})
        except SettingsError as error:
            yield ConfigProblem(at, f"{error.subject} {error.problem}", error.remedy)


def _lint_policy(
    application: Mapping[str, Any], args: AppArgs, at: Location
) -> Iterator[ConfigProblem]:
    """Yield what is wrong with the autoscaling policy.

    Serve's own policy scales each deployment alone, by its requests, so it can't see the work that
    is still at another stage.
    """
    policy = application.get("autoscaling_policy") or {}
    if not isinstance(policy, dict):
        return  # the schema has refused it
    at = (*at, "autoscaling_policy")
    function = policy.get("policy_function")
    if function == POLICY:
        yield from _lint_targets(policy.get("policy_kwargs"), (*at, "policy_kwargs"))
        return
    stages = {"base": args.base, "refiner": args.refiner, "combined": args.combined}
    autoscaled = [name for name, scale in stages.items() if scale and scale.autoscales]
    if autoscaled:
        yield ConfigProblem(
            at,
            f"{f'names {function}' if function else 'is missing'}, but "
            f"{' and '.join(autoscaled)} autoscale; Serve would count requests, whatever their "
            "length",
            f"Set autoscaling_policy: {{ policy_function: {POLICY} }}",
        )


def _lint_targets(targets: Any, at: Location) -> Iterator[ConfigProblem]:
    known = [field.name for field in fields(ScalingTargets)]
    for name, value in targets.items() if isinstance(targets, dict) else ():
        if name not in known:
            yield ConfigProblem((*at, name), "unknown key", _meant(name, known))
            continue
        try:
            ScalingTargets(**{name: value})
        except ValueError as error:
            yield ConfigProblem(at, str(error))


def _lint_override(override: Mapping[str, Any], at: Location) -> Iterator[ConfigProblem]:
    """Yield options that would win over the builder, which fits the replicas to the machine."""
    name = override["name"]
    if name not in SECTIONS:
        problem = f"{name} is not a deployment of this service"
        yield ConfigProblem((*at, "name"), problem, _meant(name, SECTIONS))
        return
    section = SECTIONS[name]
    if section:
        problem = f"would override args.{section}"
        remedy = f"Set min_replicas, max_replicas, num_cpus and num_gpus in args.{section}"
    else:
        problem, remedy = "the Ledger has one replica and asks Ray for nothing", "Remove this key"
    for key in _SET_IN_ARGS:
        if key in override:
            yield ConfigProblem((*at, key), problem, remedy)


def _remedy_for_key(key: str, known: Collection[str]) -> str:
    """Return where an unknown key belongs, or the key of its section that was probably meant."""
    if is_setting(key):
        return "It belongs under args.settings"
    owners = [_dotted(at) or "the top level" for at, keys in _all_sections().items() if key in keys]
    return f"It belongs under {' or '.join(owners)}" if owners else _meant(key, known)


def _all_sections() -> dict[Location, tuple[str, ...]]:
    return _ARGS_OF_SECTIONS | sections()


def _meant(name: Any, known: Collection[str]) -> str:
    meant = suggest(str(name), known)
    return f"Did you mean {meant}?" if meant else f"Known: {', '.join(known)}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dotted(location: Location) -> str:
    """Return a location as it is usually written: applications[0].args.base."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")
