"""The way imports point, read from the source: an import against the arrows fails here.

A room is a folder or a module of the package. The longest name that fits a file is its room.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "serve_app"
CORE = {"core"}
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {  # which rooms, and which heavy libraries
    "core.errors": (set(), set()),
    "core.replica_errors": ({"core.errors"}, set()),
    "core.caller": (set(), set()),
    "core.diffusion": ({"core.caller", "core.errors", "core.diffusion"}, set()),
    "core.scheduling": (
        {"core.caller", "core.errors", "core.diffusion", "core.scheduling"},
        set(),
    ),
    "core.capacity": (
        {"core.caller", "core.errors", "core.diffusion", "core.scheduling", "core.capacity"},
        set(),
    ),
    "core.service": (
        {"core.caller", "core.errors", "core.replica_errors"}
        | {"core.diffusion", "core.capacity", "core.service"},
        set(),
    ),
    "core": ({"core.errors"}, set()),
    "process": (set(), set()),
    "runtime.checkpoints": (CORE | {"runtime.checkpoints"}, set()),
    "runtime": (CORE | {"runtime"}, {"torch", "diffusers", "transformers", "xformers", "peft"}),
    "ledger_store": (CORE | {"ledger_store"}, set()),
    "cloud.gemini_options": (set(), set()),
    "cloud": (
        CORE | {"cloud", "deployments.deadline", "deployments.image_metrics"},
        {"httpx2"},
    ),
    "spool.access": (set(), set()),
    "spool": (CORE | {"spool"}, set()),
    "deployments.graph": (
        CORE | {"runtime.checkpoints", "config", "deployments", "ledger_store"},
        {"ray"},
    ),
    "deployments": (CORE | {"process", "runtime", "deployments", "ledger_store"}, {"ray"}),
    "ingress.native": (CORE | {"ingress"}, {"fastapi", "starlette"}),
    "ingress.openai": (CORE | {"ingress"}, {"fastapi", "starlette"}),
    "ingress.mcp": (CORE | {"ingress"}, {"fastapi", "starlette", "mcp", "mcp_types"}),
    "ingress.webhooks": (CORE | {"ingress.contracts"}, {"httpx2"}),
    "ingress.http_ingress": (
        CORE | {"process", "ingress", "spool", "cloud"},
        {"fastapi", "starlette"},
    ),
    "ingress": (CORE | {"process", "ingress", "spool"}, {"fastapi", "starlette"}),
    "config": (
        CORE
        | {"runtime.checkpoints", "config", "demo.vocabulary", "spool.access"}
        | {"cloud.gemini_options"},
        set(),
    ),
    "demo.vocabulary": (CORE | {"demo.lexicon"}, set()),
    "demo.lexicon": ({"demo.scene"}, set()),
    "demo.scene": (set(), set()),
    "hub": (CORE | {"runtime.checkpoints", "hub"}, {"huggingface_hub", "httpx2"}),
    "doctor": (
        CORE | {"runtime", "hub", "config", "doctor", "ledger_store", "spool.access", "cloud"},
        {"torch"},
    ),
    "simulator": (CORE | {"simulator"}, set()),
    "demo": (CORE | {"runtime", "demo"}, {"torch", "diffusers", "transformers"}),
    "testing": (
        CORE | {"runtime", "deployments", "ingress", "config", "simulator", "testing"},
        {"torch", "ray"},
    ),
    "bench": (
        CORE
        | {"runtime", "deployments", "ingress", "config", "demo", "simulator", "testing"}
        | {"bench", "app", "process"},
        {"torch", "diffusers", "ray", "fastapi", "starlette"},
    ),
    "app": (CORE | {"config", "deployments", "ingress"}, {"ray"}),
    "cli": (
        CORE
        | {"runtime", "config", "ingress", "hub", "doctor", "simulator", "bench", "demo", "cli"}
        | {"deployments.ray_private", "deployments.replica_log", "deployments.cluster"}
        | {"ledger_store", "process"},
        {"torch", "ray"},
    ),
    "__main__": ({"cli"}, set()),
    "__init__": (set(), set()),
}
HEAVY = {"torch", "diffusers", "transformers", "xformers", "ray", "fastapi", "starlette"} | {
    "huggingface_hub",
    "httpx2",
    "mcp",
    "mcp_types",
    "peft",
}
FILES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted(Path(__file__).parent.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Return every name that a file imports, nested imports too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(file: Path) -> str:
    """Return the dotted name of a file below the package."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def within(module: str, room: str) -> bool:
    """Return whether a module is a room, or stands in it."""
    return module == room or module.startswith(f"{room}.")


def room_of(file: Path) -> str:
    """Return the room of a file: the longest that fits."""
    return max((room for room in MAY_IMPORT if within(module_of(file), room)), key=len)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_follow_the_arrows(file: Path) -> None:
    rooms, heavy = MAY_IMPORT[room_of(file)]
    for name in imported(file):
        top, _, ours = name.partition(".")
        if top == "serve_app" and ours != "__version__":
            assert any(within(ours, room) for room in rooms), f"{module_of(file)} imports {name}"
        if top in HEAVY:
            assert top in heavy, f"{module_of(file)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_door_is_imported_by_itself_and_the_app_alone(file: Path) -> None:
    module = module_of(file)
    for name in imported(file):
        _, _, ours = name.partition("serve_app.ingress.")
        door = ours.partition(".")[0]
        is_door = door and (PACKAGE / "ingress" / door / "door.py").is_file()
        if is_door and module.startswith("ingress."):
            assert module == "ingress.app" or within(module, f"ingress.{door}"), name


@pytest.mark.parametrize("file", sorted((PACKAGE / "core").rglob("*.py")), ids=module_of)
def test_core_stands_on_the_standard_library_without_clock_chance_or_io(file: Path) -> None:
    for name in imported(file):
        top = name.split(".")[0]
        assert top == "serve_app" or top in sys.stdlib_module_names, name
        assert top not in {"asyncio", "time", "random", "secrets", "threading", "socket", "os"}


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_every_file_opens_with_what_it_is_and_stays_short(file: Path) -> None:
    source = file.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) <= 320


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_task_of_its_own_begins_with_a_context_of_its_own(file: Path) -> None:
    """Serve cancels the remote calls of a context when its request's client disconnects."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.create_task":
            assert "context" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)


def test_only_the_package_and_its_entry_points_lie_at_the_root() -> None:
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "app.py"}


def test_no_drawer_files() -> None:
    drawers = {"utils", "helpers", "common", "manager", "misc"}
    assert not drawers & {file.stem for file in FILES}


@pytest.mark.parametrize(
    "file", TEST_FILES, ids=lambda file: str(file.relative_to(Path(__file__).parent))
)
def test_no_test_module_or_conftest_is_imported(file: Path) -> None:
    for name in imported(file):
        if name.startswith("tests."):
            parts = name.split(".")[1:]
            shared = [part for part in parts if part.startswith("test_") or part == "conftest"]
            assert not shared, f"{file} imports {name}: move it to tests/support"
