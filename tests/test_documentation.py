"""What the documentation says exists: commands and options, targets, requests, files, settings."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from serve_app.cli.main import commands
from serve_app.config.cloud_settings import OWN_ENVIRONMENT
from serve_app.config.lint import lint
from serve_app.config.models_file import read_models_file
from serve_app.config.setting_names import SettingNames
from serve_app.config.settings import VARIABLES
from serve_app.config.settings_reference import markdown_table, with_table
from serve_app.core.service.metrics import METRICS
from serve_app.ingress.native.schemas import GenerateRequest, RefineRequest
from serve_app.process import allocator

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
NAMES = SettingNames(VARIABLES)
_REQUESTS: dict[str, type[BaseModel]] = {"/generate": GenerateRequest, "/refine": RefineRequest}


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page."""

    page: str
    language: str
    text: str


def snippets(*languages: str) -> list[Snippet]:
    """Return the fenced blocks in these languages, page by page."""
    found = []
    for page in PAGES:
        for language, text in _FENCE.findall(page.read_text()):
            if language in languages:
                found.append(Snippet(page.name, language, text))
    return found


def name_of(value: Snippet | Path) -> str:
    """Return a test id for a page or a snippet."""
    return value.name if isinstance(value, Path) else f"{value.page}: {value.text.splitlines()[0]}"


def shell_commands() -> Iterator[list[str]]:
    """Yield the words of every command line in the shell blocks, and of inline `aura` commands."""
    for snippet in snippets("bash", "sh"):
        lines = snippet.text.replace("\\\n", " ").splitlines()
        for line in lines:
            yield [word for word in shlex.split(line, comments=True, posix=True) if word != "|"]
    for page in PAGES:
        prose = _FENCE.sub("", page.read_text())
        for command in re.findall(r"`((?:\.venv/bin/)?aura [^`]+)`", prose):
            yield command.split()


def aura_commands() -> list[str]:
    """Return what follows `aura` in the documentation, each once."""
    found = dict[str, None]()
    for words in shell_commands():
        names = [word.removeprefix(".venv/bin/") for word in words]
        if "aura" in names:
            found[" ".join(words[names.index("aura") + 1 :])] = None
    return list(found)


@pytest.mark.parametrize("line", aura_commands())
def test_every_command_exists_with_its_options(line: str) -> None:
    command: Any = typer.main.get_command(commands)
    words = line.split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not getattr(command, "commands", {}) or not words, f"no command {line}"
    options = {option for parameter in command.params for option in parameter.opts}
    used = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
    assert used <= options | {"--help"}


def test_every_make_target_exists() -> None:
    used = set()
    for page in PAGES:
        used |= set(
            re.findall(r"(?:^|`)(?:\w+=\w+ )?make ([a-z-]+)", page.read_text(), re.MULTILINE)
        )
    assert {"serve", "test", "check"} <= used <= MAKE_TARGETS


def test_the_readme_opens_with_the_two_commands_and_stays_short() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make serve") < readme.index("make test") < readme.index("## ")
    assert len(readme.splitlines()) <= 130


def bodies() -> list[tuple[str, str]]:
    """Return the route and JSON body of every `curl -d` in the documentation."""
    text = "\n".join(snippet.text.replace("\\\n", " ") for snippet in snippets("bash"))
    return re.findall(r"localhost:4000(/\w+).*?-d '(\{.*?\})'", text)


@pytest.mark.parametrize(("route", "body"), bodies())
def test_every_request_body_is_legal(route: str, body: str) -> None:
    _REQUESTS[route].model_validate_json(body)


def test_a_curl_that_saves_a_png_asks_for_one_image() -> None:
    text = "\n".join(snippet.text.replace("\\\n", " ") for snippet in snippets("bash"))
    saving = [line for line in text.splitlines() if "image/png" in line]
    assert saving
    assert not [line for line in saving if re.search(r'"imageCount": [^1]', line)]


def test_the_field_table_of_the_api_page_names_fields_of_the_request() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    table = page.partition("| field | meaning | default |")[2].partition("\n\n")[0]
    first_cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    fields = {field.alias or name for name, field in GenerateRequest.model_fields.items()}
    assert named == fields


def test_there_are_request_bodies_to_check() -> None:
    assert len(bodies()) >= 2


@pytest.mark.parametrize("snippet", snippets("python"), ids=name_of)
def test_every_python_snippet_parses(snippet: Snippet) -> None:
    ast.parse(snippet.text)


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=name_of)
def test_every_yaml_snippet_is_understood(snippet: Snippet, tmp_path: Path) -> None:
    document = yaml.safe_load(snippet.text)
    if "autoscaling_policy" in document:
        application = {
            "name": "aura",
            "import_path": "serve_app.app:build",
            "args": {"base": {"max_replicas": 2}},
            **document,
        }
        assert not list(lint({"applications": [application]}))
    else:
        file = tmp_path / "models.yaml"
        file.write_text(snippet.text)
        models = read_models_file(file)
        assert models.models or models.extensions


def links() -> list[tuple[Path, str]]:
    """Return every relative link, with the page it stands on."""
    found = []
    for page in PAGES:
        targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        found += [(page, target) for target in targets if "://" not in target]
    return found


@pytest.mark.parametrize(("page", "target"), links(), ids=str)
def test_every_link_leads_somewhere(page: Path, target: str) -> None:
    file, _, anchor = target.partition("#")
    linked = (page.parent / file).resolve() if file else page
    assert linked.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings}
        assert anchor in anchors


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_named_in_code_exists(page: Path) -> None:
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|json|md|txt))`", page.read_text()):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "serve_app")), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_named_in_code_is_understood(page: Path) -> None:
    foreign = {
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HOME",
        "RAY_TMPDIR",
        "TORCH_INDEX",
        "THP_MEM_ALLOC_ENABLE",
    }
    foreign |= {"RAY_SERVE_ENABLE_HA_PROXY", OWN_ENVIRONMENT}
    foreign |= {"HTTPS_PROXY", "SSL_CERT_FILE", "HF_HUB_OFFLINE"}  # that others read
    foreign |= {f"RAY_SERVE_HAPROXY_{port}_PORT" for port in ("STATS", "METRICS")}
    foreign |= set(allocator.environment({}))
    codes = {
        "DEADLINE_EXCEEDED",
        "DRAINING",
        "IMAGE_KILLS_REPLICA",
        "LEDGER_UNAVAILABLE",
        "NOT_ACCEPTABLE",
        "NUMERIC_FAULT",
        "UPSTREAM_ERROR",
        "SAFETY_BLOCK",
        "MODEL_UNAVAILABLE",
        "REPLICA_LOST",
        "VALIDATION_ERROR",
    }
    for name in re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", page.read_text()):
        known = NAMES.field_of(name) is not None
        assert known or name in foreign | codes or name == "AURA_", name


def test_the_settings_table_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert markdown_table() in page
    assert with_table(page) == page, "run `make configuration`"


def test_the_glossary_points_at_files_that_exist() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    places = re.findall(r"`((?:core|runtime|deployments|ingress)/[\w/.]+)`", text)
    assert len(places) > 15
    for place in places:
        assert (ROOT / "serve_app" / place).exists(), place


def test_the_operations_page_lists_every_metric_with_its_help() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = {
        row.split("|")[1].strip(): row for row in page.splitlines() if row.startswith("| `aura")
    }
    assert rows.keys() == {f"`{metric.name}`" for metric in METRICS}
    for metric in METRICS:
        cells = f"| {metric.kind} | {', '.join(metric.labels)} | {metric.help} |"
        assert cells in rows[f"`{metric.name}`"]
