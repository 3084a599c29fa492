"""The command: what stands on the terminal, what the JSON holds, the exit status."""

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
from serve_app.cli.doctor import doctor, tell
from serve_app.cli.main import commands
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from serve_app.doctor.run import Section

LONG = "MODEL_CHECKPOINT_DIR=./models/sdxl-base does not exist, and nothing else that is whole does"
SECTIONS: list[tuple[str, list[Finding]]] = [
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
Aura Serve {__version__}, examined

machine
  OK    python       Python 3.11.9
  SKIP  clock        unknown here

models
  FAIL  base         {LONG}
                     $ aura download sdxl --folder 'a [b]'
  WARN  device       MODEL_DEVICE=cpu leaves the card unused
                     .env.local: MODEL_DEVICE=auto

4 checks: 1 OK, 1 WARN, 1 FAIL, 1 SKIP
Mend what fails, then again: aura doctor
"""


def told(width: int, *, terminal: bool, sections: tuple[Section, ...] = SECTIONS) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, highlight=False)
    tell(sections, console)
    return file.getvalue()


def test_without_a_terminal_a_finding_is_one_line_of_ascii() -> None:
    assert told(80, terminal=False) == PLAIN
    odd = [("models", [fine("base", "./modelos/año is whole")])]
    assert r"./modelos/a\xf1o is whole" in told(80, terminal=False, sections=odd)
    assert told(80, terminal=False).isascii()


def test_no_color_is_honoured_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = told(80, terminal=True)
    assert text.isascii() and "\x1b[3" not in text


@pytest.mark.parametrize("width", [64, 80, 120, 200])
def test_on_a_terminal_sentences_are_wrapped_and_commands_are_not(width: int) -> None:
    text = told(width, terminal=True)
    assert "\x1b[" in text
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    commands = [line for line in bare if line.strip().startswith("$ ")]
    assert commands == [" " * 23 + "$ aura download sdxl --folder 'a [b]'"]
    others = [line for line in bare if line not in commands]
    assert max(map(len, others)) <= width
    joined = " ".join(" ".join(bare).split())
    assert LONG in joined and "✗ FAIL" in joined and "✓ OK" in joined


def test_the_json_is_one_object_and_no_more(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", str(folder / "nowhere"))
    done = CliRunner().invoke(commands, ["doctor", "--json"])
    assert done.exit_code == 1
    content = json.loads(done.stdout)
    assert set(content) == {"ok", "version", "findings"}
    assert content["ok"] is False and content["version"] == __version__
    assert {tuple(one) for one in content["findings"]} == {("check", "verdict", "said", "mend")}
    (base,) = [one for one in content["findings"] if one["check"] == "base"]
    assert base == {
        "check": "base",
        "verdict": "FAIL",
        "said": f"MODEL_CHECKPOINT_DIR={folder}/nowhere does not exist",
        "mend": "aura download sdxl",
    }


def test_a_config_elsewhere_can_be_examined(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(folder / "mine.yaml", as_json=True) == 1
    findings = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["config"]["said"].startswith(f"{folder}/mine.yaml is not there")


def examined(
    folder: Path, *options: str, before: str = "pass"
) -> "subprocess.CompletedProcess[str]":
    script = f"import sys; {before}; sys.argv[0] = 'serve_app'; import runpy; " + (
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


def test_the_real_command_finds_the_demo_sound_on_this_machine(folder: Path, port: int) -> None:
    done = examined(folder, "--json")
    assert done.stderr == ""
    findings = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    of_this_machine = {"clock", "ray", "ray ports", "disk", "device", "gpus", "memory", "torch"}
    assert {one["verdict"] for name, one in findings.items() if name not in of_this_machine} == {
        "OK"
    }


def test_it_needs_no_ray_and_imports_no_pipeline(folder: Path, port: int) -> None:
    blocked = "sys.modules.update(dict.fromkeys(('ray', 'diffusers', 'transformers'), None))"
    done = examined(folder, "--json", before=blocked)
    assert "base" in {one["check"] for one in json.loads(done.stdout)["findings"]}


def test_a_torch_that_can_not_be_imported_is_a_finding(folder: Path, port: int) -> None:
    done = examined(folder, before="sys.modules['torch'] = None")
    assert done.returncode == 1 and done.stderr == ""
    assert "  FAIL  torch        torch can't be used: import of torch halted" in done.stdout
    assert "  SKIP  device       not examined, because torch can't be used" in done.stdout


def test_a_half_installed_package_is_told_and_how_to_install_it(folder: Path) -> None:
    done = examined(folder, before="sys.modules['dotenv'] = None")
    assert done.returncode == 1 and done.stderr == ""
    assert "a package of this service can't be imported: import of dotenv" in done.stdout
    assert "$ python -m pip install -e .\n" in done.stdout


def test_it_gets_as_far_on_windows_which_has_no_fcntl(folder: Path, port: int) -> None:
    script = "sys.modules['fcntl'] = None; import serve_app.doctor.run; sys.argv[1] = '--help'"
    done = examined(folder, before=script)
    assert done.returncode == 0, done.stderr
