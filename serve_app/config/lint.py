"""`slips`: what is wrong with the keys of a serve config, each told with what may have been meant.

Serve passes over a key that it does not know, so that a slip would do nothing, silently. Knows no
file and no Ray.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from serve_app.config.app_args import AppArgs
from serve_app.config.serve_schema import ServeFile
from serve_app.config.settings import Settings, check_given
from serve_app.core.capacity.autoscaler import ScalingTargets
from serve_app.core.errors import SettingsError

BUILDER = "serve_app.app:build"
POLICY = "serve_app.deployments.autoscaling:OwedWorkAutoscaler"
SECTIONS = {  # of args, by the deployment that each is for
    "Ingress": "ingress",
    "Ledger": None,
    "BaseGenerator": "base",
    "Refiner": "refiner",
    "BaseAndRefiner": "combined",
}
_OF_ARGS = ("num_replicas", "autoscaling_config", "ray_actor_options")  # in our words: a section
_ASIDE = {"deployments", "grpc_options"}  # where nothing of this service should stand
_NEAR = 0.65  # likeness from which a key is taken for a slip of another
_SAID = {
    "model_type": "must hold keys",
    "dict_type": "must hold keys",
    "list_type": "must be a list",
    "missing": "is missing",
}
Where = tuple[str | int, ...]


def lint(config: Mapping[str, Any]) -> Iterator[str]:
    """What Serve would refuse or pass over, and what we would refuse, a sentence each.

    Where there is none, `ServeFile` takes the config and `AppArgs` the args of our application.
    """
    yield from _checked(ServeFile, config, ())
    applications = config.get("applications")
    entries = applications if isinstance(applications, list) else []
    ours = 0
    for place, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("import_path") == BUILDER:
            ours += 1
            yield from _slips_of_ours(entry, ("applications", place))
    if not ours:
        there = [str(one["import_path"]) for one in entries if _names_builder(one)]
        told = f"; there is {', '.join(there)}" if there else ""
        yield f"applications has none with the import_path {BUILDER}{told}"


def _names_builder(entry: Any) -> bool:
    return isinstance(entry, dict) and "import_path" in entry


def _slips_of_ours(application: Mapping[str, Any], at: Where) -> Iterator[str]:
    args = application.get("args", {})
    if isinstance(args, dict):
        found = list(_checked(AppArgs, args, (*at, "args")))
        yield from found or _slips_of_policy(application, AppArgs.model_validate(args), at)
        settings = args.get("settings", {})
        for name, value in settings.items() if isinstance(settings, dict) else ():
            try:
                check_given({str(name): str(value)})
            except SettingsError as error:
                yield f"{_path((*at, 'args', 'settings'))}: {error}"
    overrides = application.get("deployments", [])
    for place, override in enumerate(overrides if isinstance(overrides, list) else []):
        if isinstance(override, dict):
            yield from _slips_of_override(override, (*at, "deployments", place))


def _slips_of_policy(application: Mapping[str, Any], args: AppArgs, at: Where) -> Iterator[str]:
    """Serve's own policy scales each deployment by itself, and so can't know what is to come."""
    policy = application.get("autoscaling_policy")
    policy = policy if isinstance(policy, dict) else {}  # what else it is has been told
    named = policy.get("policy_function")
    where = (*at, "autoscaling_policy")
    if named == POLICY:
        yield from _slips_of_aims(policy.get("policy_kwargs"), (*where, "policy_kwargs"))
        return
    sections = {"base": args.base, "refiner": args.refiner, "combined": args.combined}
    varying = [name for name, scale in sections.items() if scale and scale.autoscales]
    if varying:
        said = f"names {named}" if named else "is missing"
        yield (
            f"{_path(where)} {said}, and replicas of {' and '.join(varying)} come and go: without "
            "ours Serve counts requests, of whatever length. Say autoscaling_policy: "
            f"{{ policy_function: {POLICY} }}"
        )


def _slips_of_aims(aims: Any, at: Where) -> Iterator[str]:
    known = {aim.name: aim for aim in fields(ScalingTargets)}
    for name, value in aims.items() if isinstance(aims, dict) else ():
        if name not in known:
            yield f"{_path((*at, name))} is unknown{_meant(name, known)}"
            continue
        try:
            ScalingTargets(**{name: value})
        except ValueError as error:
            yield f"{_path(at)}.{error}"


def _slips_of_override(override: Mapping[str, Any], at: Where) -> Iterator[str]:
    """What stands there wins over the builder, which then can't fit a replica to the machine."""
    name = override.get("name")
    if not isinstance(name, str):
        return  # which has been told
    if name not in SECTIONS:
        yield f"{_path((*at, 'name'))} is no deployment of this service{_meant(name, SECTIONS)}"
        return
    section = SECTIONS[name]
    belongs = "the Ledger is one, and asks Ray for nothing"
    if section:
        belongs = f"min_replicas, max_replicas, num_cpus and num_gpus stand in args.{section}"
    for key in _OF_ARGS:
        if key in override:
            yield f"{_path((*at, key))} would put out what the args say: {belongs}"


def _checked(model: type[BaseModel], data: Any, at: Where) -> Iterator[str]:
    """What a model finds wrong with the data that stands there."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        for one in error.errors():
            loc = tuple(part for part in one["loc"] if part != "[key]")
            where = _path((*at, *loc)) or "applications"
            if one["type"] == "extra_forbidden":
                yield f"{where} is unknown{_suggestion(model, loc)}"
                continue
            if one["type"] in _SAID:
                yield f"{where} {_SAID[one['type']]}"
                continue
            said = one["msg"].removeprefix("Value error, ")
            got = f", got {one['input']}" if isinstance(one["input"], (int, float)) else ""
            yield f"{where}: {said}{got}"


def _suggestion(model: type[BaseModel], loc: Where) -> str:
    """What an unknown key may be: another section's, a setting, or a slip of a neighbour."""
    key = str(loc[-1])
    if key.upper() in map(str.upper, Settings.model_fields):
        return "; it belongs under args.settings"
    homes = [*_homes(AppArgs, key, "args"), *_homes(ServeFile, key, "the top level")]
    if homes:
        return f"; it belongs under {' or '.join(homes)}"
    return _meant(key, _section_at(model, loc[:-1]).model_fields)


def _meant(name: Any, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=_NEAR)
    return f"; did you mean {near[0]}?" if near else f"; there is {', '.join(known)}"


def _homes(model: type[BaseModel], key: str, at: str) -> Iterator[str]:
    """The sections that have this key, by their paths."""
    if key in model.model_fields:
        yield at
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section and name not in _ASIDE:
            yield from _homes(section, key, name if at == "the top level" else f"{at}.{name}")


def _section_at(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str):
            model = _section(model.model_fields[part].annotation) or model
    return model


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that has keys of its own, or a list of such."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_section, get_args(annotation)) if found), None)


def _path(loc: Sequence[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).removeprefix(".")
