"""The command `doctor`: its text, its JSON and its exit status."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from serve_app import __version__
from serve_app.cli.doctor import TitledFindings, doctor, print_findings
from serve_app.cli.main import commands
from serve_app.doctor.finding import fail, fine, skip, warn

LONG = (
    "MODEL_CHECKPOINT_DIR=./models/sdxl-base does not exist, and neither does another complete one"
)
SECTIONS: list[TitledFindings] = [
    ("machine", [fine("python", "Python 3.11.9"), skip("clock", "unknown here")]),
    (
        "models",
        [
            fail("base", LONG, "aura download sdxl --folder 'a [b]'"),
            warn("device", "MODEL_DEVICE=cpu leaves the card unused", "MODEL_DEVICE=auto"),
        ],
    ),
]
PLAIN = f"""\
Aura Serve {__version__}: doctor

machine
  OK    python       Python 3.11.9
  SKIP  clock        unknown here

models
  FAIL  base         {LONG}
                     $ aura download sdxl --folder 'a [b]'
  WARN  device       MODEL_DEVICE=cpu leaves the card unused
                     .env.local: MODEL_DEVICE=auto

4 checks: 1 OK, 1 WARN, 1 FAIL, 1 SKIP
Fix what fails, then run again: aura doctor
"""


def printed(width: int, *, is_terminal: bool, sections: list[TitledFindings] = SECTIONS) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal, highlight=False)
    print_findings(sections, console)
    return file.getvalue()


def test_without_a_terminal_a_finding_is_one_line_of_ascii() -> None:
    assert printed(80, is_terminal=False) == PLAIN
    accented: list[TitledFindings] = [("models", [fine("base", "./modelos/año is complete")])]
    assert r"./modelos/a\xf1o is complete" in printed(80, is_terminal=False, sections=accented)
    assert printed(80, is_terminal=False).isascii()


def test_no_color_is_honoured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(80, is_terminal=True)
    assert text.isascii()
    assert "\x1b[3" not in text


@pytest.mark.parametrize("width", [64, 80, 120, 200])
def test_on_a_terminal_sentences_are_wrapped_and_commands_are_not(width: int) -> None:
    text = printed(width, is_terminal=True)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    commands = [line for line in plain if line.strip().startswith("$ ")]
    assert commands == [" " * 23 + "$ aura download sdxl --folder 'a [b]'"]
    others = [line for line in plain if line not in commands]
    assert max(map(len, others)) <= width
    joined = " ".join(" ".join(plain).split())
    assert LONG in joined
    assert "✗ FAIL" in joined
    assert "✓ OK" in joined


def test_the_json_is_one_object(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", str(folder / "nowhere"))
    done = CliRunner().invoke(commands, ["doctor", "--json"])
    assert done.exit_code == 1
    content = json.loads(done.stdout)
    assert set(content) == {"ok", "version", "findings"}
    assert content["ok"] is False
    assert content["version"] == __version__
    assert {tuple(finding) for finding in content["findings"]} == {
        ("check", "verdict", "message", "fix")
    }
    (base,) = [finding for finding in content["findings"] if finding["check"] == "base"]
    assert base == {
        "check": "base",
        "verdict": "FAIL",
        "message": f"MODEL_CHECKPOINT_DIR={folder}/nowhere does not exist",
        "fix": "aura download sdxl",
    }


def test_a_config_in_another_folder_can_be_checked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(folder / "mine.yaml", as_json=True) == 1
    findings = by_check(capsys.readouterr().out)
    assert findings["config"]["message"].startswith(f"{folder}/mine.yaml does not exist")


def by_check(output: str) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in json.loads(output)["findings"]}


def run_doctor(
    folder: Path, *options: str, setup_code: str = "pass"
) -> "subprocess.CompletedProcess[str]":
    """Run the real command in another process, after some Python code."""
    script = f"import sys; {setup_code}; sys.argv[0] = 'serve_app'; import runpy; " + (
        "runpy.run_module('serve_app', run_name='__main__')"
    )
    root = Path(__file__).parent.parent.parent
    return subprocess.run(
        [sys.executable, "-c", script, "doctor", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def test_the_real_command_finds_no_problem_with_the_demo_on_this_machine(
    folder: Path, port: int
) -> None:
    done = run_doctor(folder, "--json")
    assert done.stderr == ""
    findings = by_check(done.stdout)
    of_this_machine = {"clock", "ray", "ray ports", "disk", "device", "gpus", "memory", "torch"}
    others = {name for name in findings if name not in of_this_machine}
    assert {findings[name]["verdict"] for name in others} == {"OK"}


def test_it_needs_no_ray_and_imports_no_pipeline(folder: Path, port: int) -> None:
    blocked = "sys.modules.update(dict.fromkeys(('ray', 'diffusers', 'transformers'), None))"
    done = run_doctor(folder, "--json", setup_code=blocked)
    assert "base" in by_check(done.stdout)


def test_a_torch_that_cannot_be_imported_is_a_finding(folder: Path, port: int) -> None:
    done = run_doctor(folder, setup_code="sys.modules['torch'] = None")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "  FAIL  torch        torch can't be used: import of torch halted" in done.stdout
    assert "  SKIP  device       not checked, because torch can't be used" in done.stdout


def test_a_half_installed_package_is_reported_with_the_install_command(folder: Path) -> None:
    done = run_doctor(folder, setup_code="sys.modules['dotenv'] = None")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "a package that this service needs can't be imported: import of dotenv" in done.stdout
    assert "$ python -m pip install -e .\n" in done.stdout


def test_it_can_be_imported_on_windows_which_has_no_fcntl(folder: Path, port: int) -> None:
    script = "sys.modules['fcntl'] = None; import serve_app.doctor.run; sys.argv[1] = '--help'"
    done = run_doctor(folder, setup_code=script)
    assert done.returncode == 0, done.stderr
