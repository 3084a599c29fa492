"""The way imports point, read from the source: an import against the arrow fails here."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "serve_app"
MAY_IMPORT = {  # room: what of ours, and which heavy libraries
    "core": ({"core"}, set()),
    "runtime": ({"core", "runtime"}, {"torch", "diffusers", "transformers", "xformers", "peft"}),
    "demo": ({"core", "runtime", "demo"}, {"torch", "diffusers", "transformers"}),
    "bench": (
        {"core", "runtime", "demo", "deployments", "ingress", "sim", "args", "app", "bench"}
        | {"slips"},
        {"torch", "diffusers", "ray", "starlette"},
    ),
    "deployments": ({"core", "runtime", "demo", "deployments"}, {"ray"}),
    "ingress": ({"core", "ingress"}, {"fastapi", "starlette"}),
    "hub": ({"core", "runtime", "hub"}, {"huggingface_hub", "httpx2"}),
    "sim": ({"core", "sim"}, set()),
    "settings": ({"core"}, set()),
    "args": ({"core"}, set()),
    "loader": (set(), set()),
    "serve_file": (set(), set()),
    "slips": ({"core", "args", "settings", "serve_file"}, set()),
    "registry": ({"core", "loader"}, set()),
    "choices": ({"core", "runtime", "demo", "settings", "registry"}, set()),
    "app": (
        {"core", "runtime", "demo", "deployments", "ingress", "settings", "args", "choices"},
        {"ray"},
    ),
    "config": ({"core", "settings", "args", "loader", "serve_file", "slips"}, set()),
    "service": ({"core", "choices", "settings", "config", "serve_file"}, {"ray"}),
    "generate": ({"core", "runtime", "ingress", "settings", "choices"}, {"torch"}),
    "download": ({"core", "runtime", "hub", "settings"}, set()),
    "doctor": (
        {"core", "runtime", "demo", "hub", "settings", "args", "choices", "config", "doctor"},
        {"torch"},
    ),
    "__main__": ({"service", "generate", "download", "doctor", "bench", "sim"}, set()),
    "__init__": (set(), set()),
}
HEAVY = {"torch", "diffusers", "transformers", "xformers", "ray", "fastapi", "starlette"} | {
    "huggingface_hub",
    "httpx2",
    "peft",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Every module a file imports, nested imports too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(file: Path) -> None:
    ours, heavy = MAY_IMPORT[room_of(file)]
    for name in imported(file):
        parts = name.split(".")
        if parts[0] == "serve_app" and parts[1:2] != ["__version__"]:
            assert parts[1] in ours, f"{file.name} imports {name}"
        if parts[0] in HEAVY:
            assert parts[0] in heavy, f"{file.name} imports {name}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "core").glob("*.py")), ids=lambda f: f.name)
def test_core_stands_on_the_standard_library_without_clock_chance_or_io(file: Path) -> None:
    for name in imported(file):
        top = name.split(".")[0]
        assert top == "serve_app" or top in sys.stdlib_module_names, name
        assert top not in {"asyncio", "time", "random", "secrets", "threading", "socket", "os"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_every_file_opens_with_what_it_is_and_stays_short(file: Path) -> None:
    source = file.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) <= 320


def test_no_drawer_files() -> None:
    drawers = {"utils", "helpers", "common", "manager", "misc"}
    assert not drawers & {file.stem for file in FILES}
