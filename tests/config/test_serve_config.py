"""A wrong config is reported by file and key, and `up` refuses what it would not apply."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli.check_config import check_configs
from serve_app.config.app_args import DeploymentScale
from serve_app.config.lint import POLICY
from serve_app.config.serve_config import ServeConfig, lint_file, read_config
from serve_app.config.settings import VARIABLES
from serve_app.core.errors import SettingsError
from tests.support.shipped_configs import CONFIGS, FOLDER, MANIFEST


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a serve config: it has no keys"),
        ("applications: []", "applications: none has the import_path serve_app.app:build"),
        ("{", "is not a serve config"),
        ("- 1", "is not a serve config: it has no keys"),
        (
            "port: 1\nport: 2\n",
            "is not a serve config: duplicate key port in line 2, first in line 1",
        ),
        (
            "applications: [{import_path: 'serve_app.app:build', args: {bsae: {}}}]",
            "applications[0].args.bsae: unknown key. Did you mean base?",
        ),
        (
            "http_option: {}\n"
            "applications: [{import_path: 'serve_app.app:build', args: {bsae: {}}}]",
            "http_option: unknown key. Did you mean http_options? (1 more: aura check-config ",
        ),
        ("kind: RayService", "is not a serve config: the manifest has no config under spec."),
        ("{kind: RayService, spec: {serveConfigV2: 'a: 1'}}", "applications: is missing"),
        ("{kind: RayService, spec: {serveConfigV2: 4}}", "is not a serve config"),
    ],
)
def test_a_wrong_config_is_reported_by_file_and_key(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rf"mine\.yaml.*{re.escape(sentence)}") as refused:
        read_config(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(SettingsError, match=r"missing\.yaml can't be read: No such file"):
        read_config(tmp_path / "missing.yaml")


def test_old_names_in_a_config_are_understood_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("""
applications:
  - import_path: serve_app.app:build
    autoscaling_policy:
      policy_function: serve_app.deployments.autoscaling:OwedWork
      policy_kwargs: { wait: 7, busy: 0.5, patience: 9 }
    args:
      both: { max_replicas: 2 }
      settings: { IMAGE_COUNT: 1 }
""")
    assert lint_file(path) == ()
    caplog.clear()
    config = read_config(path)
    assert config.application["autoscaling_policy"] == {
        "policy_function": POLICY,
        "policy_kwargs": {
            "target_drain_s": 7,
            "target_utilization": 0.5,
            "downscale_delay_s": 9,
        },
    }
    assert config.args.combined == DeploymentScale(max_replicas=2)
    assert config.args.settings == {"DEFAULT_IMAGE_COUNT": "1"}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 6
    assert f"{path}: both is deprecated and will be removed: use combined" in warnings


def test_an_old_key_beside_its_new_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "applications: [{import_path: 'serve_app.app:build', args: {both: {}, combined: {}}}]"
    )
    (problem,) = lint_file(path)
    assert str(problem).startswith("applications[0].args.both: unknown key")


def test_a_manifest_may_share_its_file_with_others(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(f"kind: Secret\n---\n{MANIFEST.read_text()}")
    assert read_config(path).args == read_config(MANIFEST).args


@pytest.mark.parametrize(
    "more",
    [
        "",
        "proxy_location: EveryNode",
        f"    autoscaling_policy: {{ policy_function: {POLICY} }}",
    ],
)
def test_up_applies_a_config_of_these_keys(tmp_path: Path, more: str) -> None:
    config_with(more, tmp_path).check_applied()


@pytest.mark.parametrize(
    ("more", "ignored"),
    [
        ("logging_config: { log_level: DEBUG }", "logging_config"),
        ("target_capacity: 50", "target_capacity"),
        ("    runtime_env: {}", "runtime_env"),
        ("    deployments: []", "deployments"),
        ("  - { name: other, import_path: 'a:b' }", "more than one application"),
    ],
)
def test_up_refuses_keys_that_it_would_not_apply(tmp_path: Path, more: str, ignored: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"has keys that up does not apply: {ignored}\. .* serve run .*mine"
    ):
        config_with(more, tmp_path).check_applied()


def config_with(more: str, folder: Path) -> ServeConfig:
    """Return a config of our application and of further lines."""
    path = folder / "mine.yaml"
    path.write_text(f"applications:\n  - import_path: serve_app.app:build\n{more}\n")
    return read_config(path)


def test_check_config_reports_every_problem_of_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIGS[0].read_text().replace("base:", "bsae:").replace("port:", "prot:"))
    assert check_configs([*CONFIGS]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CONFIGS)
    assert check_configs([CONFIGS[0], wrong]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{CONFIGS[0]}: every key is known",
        f"{wrong}: http_options.prot: unknown key. Did you mean port?",
        f"{wrong}: applications[0].args.bsae: unknown key. Did you mean base?",
    ]
    missing = tmp_path / "none.yaml"
    assert check_configs([missing, wrong]) == 2
    assert capsys.readouterr().err == f"error {missing} can't be read: No such file or directory\n"


def test_check_config_names_and_skips_what_is_no_serve_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, misspelt = tmp_path / "dashboard.json", tmp_path / "misspelt.yaml"
    board.write_text('{"panels": [], "title": "Aura Serve"}')
    misspelt.write_text("aplications: []")
    assert check_configs([CONFIGS[0], board, tmp_path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{CONFIGS[0]}: every key is known",
        f"{board}: skipped, it is no serve config",
        f"{tmp_path}: skipped, it is no serve config",
    ]
    assert check_configs([board]) == 2
    assert check_configs([misspelt]) == 1
    assert "aplications: unknown key. Did you mean applications?" in capsys.readouterr().out


def test_every_file_beside_the_configs_is_a_serve_config() -> None:
    assert check_configs(sorted(FOLDER.iterdir())) == 0
    assert all(file.suffix == ".yaml" for file in FOLDER.iterdir())


def test_up_and_check_config_report_the_same_before_ray_starts(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIGS[0].read_text().replace("base:", "bsae:"))
    expected = f"{wrong}: applications[0].args.bsae: unknown key. Did you mean base?"
    for command, status in ((["up", "--config"], 2), (["check-config"], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "serve_app", *command, str(wrong)],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, (done.stdout + done.stderr).strip()[-len(expected) :]) == (
            status,
            expected,
        )
