"""Ray's private names: all in one place, present, and of the version that they were read in."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.serve.request_router import RequestRouter

from serve_app.deployments import ray_private
from serve_app.deployments.ray_private import CHECKED_AGAINST, PRIVATE_NAMES, DispatchingRouter

ROOT = Path(__file__).parents[2]
ALLOWED = {
    ROOT / "serve_app/deployments/ray_private.py",
    ROOT / "tests/support/ray_private.py",
    Path(__file__),
}
OVERRIDDEN = ("_choose_replica_for_request", "_fulfill_next_pending_request")
PRIVATE_ATTRIBUTES = {
    part for name in PRIVATE_NAMES for part in name.split(":")[1].split(".") if part[0] == "_"
}


def test_the_installed_ray_is_the_version_that_was_checked() -> None:
    assert ray.__version__.startswith(f"{CHECKED_AGAINST}.")


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_each_private_name_exists(name: str) -> None:
    module, _, attributes = name.partition(":")
    value: Any = import_module(module)
    for attribute in attributes.split("."):
        fields = getattr(value, "__dataclass_fields__", {})
        value = fields[attribute] if attribute in fields else getattr(value, attribute)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_each_override_takes_the_arguments_that_ray_passes(name: str) -> None:
    parameters = [
        {parameter: (value.kind, value.default) for parameter, value in signature.items()}
        for signature in (
            inspect.signature(getattr(router, name)).parameters
            for router in (RequestRouter, DispatchingRouter)
        )
    ]
    assert parameters[0] == parameters[1]


def test_every_overridden_method_of_ray_is_listed() -> None:
    overridden = {name for name in vars(DispatchingRouter) if name in dir(RequestRouter)}
    private = {name for name in overridden if name.startswith("_") and not name.startswith("__")}
    listed = {name.rpartition(".")[2] for name in PRIVATE_NAMES if "RequestRouter._" in name}
    assert private - {"_abc_impl"} == set(OVERRIDDEN) < listed


def private_names_of(file: Path) -> list[str]:
    """Return the private names of Ray that a module imports, and the listed attributes it uses."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=aliases):
                names += [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), names=aliases):
                names += [f"{module}.{alias.name}" for alias in aliases]
            case ast.Attribute(attr=attribute) if attribute in PRIVATE_ATTRIBUTES:
                names.append(f"ray.{attribute}")
    return [
        name
        for name in names
        if name.startswith("ray.") and any(part[0] == "_" for part in name.split("."))
    ]


@pytest.mark.parametrize("folder", ["serve_app", "tests"])
def test_no_other_module_uses_a_private_name_of_ray(folder: str) -> None:
    users = {
        str(file.relative_to(ROOT)): names
        for file in (ROOT / folder).rglob("*.py")
        if file not in ALLOWED and (names := private_names_of(file))
    }
    assert users == {}
    assert private_names_of(Path(ray_private.__file__))
