"""The files people start with: configs that Serve would half ignore, a README that must be true."""

import re
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from serve_app.config import read_config
from serve_app.core.errors import SettingsError
from serve_app.ingress.schemas import GenerateRequest

ROOT = Path(__file__).parent.parent
CONFIGS = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_key_of_a_config_is_one_that_serve_or_we_know(path: Path) -> None:
    """Serve ignores what it does not know, so a slip would do nothing, silently."""
    config = yaml.safe_load(path.read_text())
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    for application in config["applications"]:
        assert set(application) <= set(ServeApplicationSchema.model_fields)
    http, application, _ = read_config(path)
    assert (http["host"], http["port"]) == ("127.0.0.1", 4000)
    assert application["import_path"] == "serve_app.app:build"
    ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("applications: []", "is no serve config"),
        ("{", "is no serve config"),
        ("applications: [{args: {base: {min_replica: 2}}}]", "args.base.min_replica"),
        ("applications: [{args: {both: {}, base: {}}}]", "args: both runs base and refiner"),
    ],
)
def test_a_config_that_is_none_is_told_by_file_and_key(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rf"mine\.yaml.*{re.escape(sentence)}"):
        read_config(path)
    with pytest.raises(SettingsError, match="is no serve config"):
        read_config(tmp_path / "missing.yaml")


def test_the_bodies_in_the_readme_are_legal() -> None:
    bodies = re.findall(r"-d '(\{.*?\})'", README)
    assert len(bodies) == 2
    for body in bodies:
        GenerateRequest.model_validate_json(body)


def test_the_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets
    assert README.index("make serve") < README.index("make test") < README.index("## ")
