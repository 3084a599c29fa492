"""Every command of the command line: its help, and how it refuses what it can't do."""

import inspect
from pathlib import Path

import pytest
from typer.main import get_command

from serve_app import __version__
from serve_app.cli.command_line import Command, CommandGroup, run
from serve_app.cli.main import commands


def main(arguments: list[str]) -> int:
    return run(commands, "aura", arguments)


def all_commands() -> dict[str, Command]:
    """Return the commands by the words that call them, groups left out."""
    found = {}
    todo = [("", get_command(commands))]
    while todo:
        words, command = todo.pop()
        if isinstance(command, CommandGroup):
            todo += [(f"{words} {name}", inner) for name, inner in command.commands.items()]
        else:
            assert isinstance(command, Command)
            found[words.strip()] = command
    return found


COMMANDS = all_commands()


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", ["", "bench", "demo"])
def test_a_bare_call_prints_the_help_and_succeeds(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 0
    assert "Commands" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aura {__version__}\n"


@pytest.mark.parametrize("words", [*COMMANDS, "", "bench", "demo"])
def test_help_names_no_type_where_an_option_takes_no_value(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--help" in printed
    assert not {"<bool>", "range>", "list["} & set(printed.replace("[x", " [x").split())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("simulte", "no such command 'simulte'. Did you mean 'simulate'?"),
        ("quite-other", "no such command 'quite-other'. See: aura --help"),
        ("bench zzz", "no such command 'zzz'. See: aura bench --help"),
        ("up stray", "got unexpected extra argument(s) (stray). See: aura up --help"),
        ("doctor --jsn", "no such option: --jsn. Did you mean --json?"),
        ("generate", "prompt is missing. See: aura generate --help"),
        ("generate a --steps abc", "--steps must be a whole number, got abc. See: aura generate"),
        ("generate a --steps 1.5", "--steps must be a whole number, got 1.5. See: aura generate"),
        ("generate a --guidance-scale x", "--guidance-scale must be a number, got x. See: "),
        ("generate a --guidance-scale nan", "--guidance-scale must be a finite number. See: "),
        ("generate a --steps", "option '--steps' requires an argument. See: aura"),
        ("generate a -o out.jpg", "--output must be the name of a .png file, got out.jpg. See: "),
        ("generate a -o .", "--output must be the name of a .png file, got .. See: "),
        ("generate a -o [b]/a.png", "--output must be in a folder that exists, got [b]/a.png."),
        ("simulate -o no/out.png", "--output must be in a folder that exists, got no/out.png."),
        ("bench scaling -o no/out.png", "--output must be in a folder that exists, got no/out."),
        ("demo sheet -o no/out.png", "--output must be in a folder that exists, got no/out.png."),
        ("simulate --gpus 1", "--gpus must be between 2 and 4096, got 1. See: aura simulate"),
        ("simulate --load nan", "--load must be between 0.01 and 10, got nan. See: aura"),
        ("simulate --seconds inf", "--seconds must be between 1 and 86400, got inf. See: au"),
        ("simulate --trace stedy", "--trace stedy is neither a file nor one of steady, bursts, "),
        ("bench engine --runs 1", "--runs must be at least 3, got 1. See: aura bench engine"),
        ("check-config", "files is missing. See: aura check-config --help"),
        ("check-config none.yaml", "none.yaml can't be read: No such file or directory"),
        ("up --config none.yaml", "none.yaml can't be read: No such file or directory"),
        ("up --config .", ". can't be read: Is a directory"),
        ("download nothing", "nothing can't be downloaded: it must be sdxl, sdxl-refiner, all, "),
    ],
)
def test_what_is_wrong_is_one_line_in_plain_words_with_exit_code_2(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"error {line}")
    for foreign in ("should be", "Input", "Errno", "Traceback", ".0."):
        assert foreign not in printed.err


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != "_run"])
def test_every_number_of_every_command_is_refused_in_the_same_words(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = COMMANDS[words].callback
    assert callback is not None
    for parameter in COMMANDS[words].params:
        option = max(parameter.opts, key=len)
        annotation = str(inspect.signature(callback).parameters[parameter.name or ""].annotation)
        if not option.startswith("--") or not ("int" in annotation or "float" in annotation):
            continue
        assert main([*words.split(), option, "many"]) == 2
        assert capsys.readouterr().err.startswith(f"error {option} must be a ")
