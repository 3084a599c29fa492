"""How commands describe their options and refuse them; what they do stands elsewhere.

Typer reports a wrong option with a usage line, a hint and a box, in pydantic's words. Here it is
one line like any other error, with exit code 2.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from serve_app.cli.console import INTERRUPTED, OK, REFUSED, print_error
from serve_app.core.errors import OperatorError
from serve_app.core.validation_message import validation_message

_OUT_OF_RANGE = ("greater_than_equal", "less_than_equal")  # pydantic's types of error


class OptionError(OperatorError):
    """An option or argument of the command line is missing, unknown or has an illegal value."""

    code = "VALIDATION_ERROR"


class Command(TyperCommand):
    """A command whose help names a type only for options that take a value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, --help among them."""
        return _with_plain_types(super().get_params(ctx), ctx)


class CommandGroup(TyperGroup):
    """Commands under one name, with the same help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options, --help among them."""
        return _with_plain_types(super().get_params(ctx), ctx)


def _with_plain_types(parameters: list[Any], ctx: Any) -> list[Any]:
    """Show no type for flags, where Typer writes <bool>, and <int> where it writes <int range>."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.metavar is None:
            shown = parameter.display_type(ctx).replace(" range>", ">")
            parameter.metavar = "" if parameter.is_flag else shown
    return parameters


def print_help_alone(context: typer.Context) -> None:
    """Print the help of a group that is called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def png_file(path: Path) -> Path:
    """Return the path of a PNG to write. Raises `typer.BadParameter` if it can't be written."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise typer.BadParameter(f"must be the name of a .png file, got {path}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"must be in a folder that exists, got {path}")
    return path


PngFile = Annotated[
    Path, typer.Option("--output", "-o", callback=png_file, help="The PNG to write.")
]


def run(commands: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code.

    The arguments are those of this process unless they are given.
    """
    try:
        code = get_command(commands).main(arguments, prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        print_error(_option_error(error, program))
        return REFUSED
    except typer.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else OK


def _option_error(error: typer.TyperException, program: str) -> OptionError:
    """Return an error of Typer's parser in our words."""
    context = getattr(error, "ctx", None)
    remedy = f"See: {context.command_path if context else program} --help"
    parameter = getattr(error, "param", None)
    if isinstance(error, typer.BadParameter) and parameter is not None:
        return OptionError(_problem(error, parameter), subject=_name(parameter), remedy=remedy)
    if similar := getattr(error, "possibilities", None):
        remedy = f"Did you mean {' or '.join(sorted(similar))}?"
    message, question, suggestion = error.message.partition(". Did you mean ")
    if question:
        remedy = f"Did you mean {suggestion}"
    return OptionError(message[:1].lower() + message[1:].rstrip("."), remedy=remedy)


def _problem(error: typer.BadParameter, parameter: Any) -> str:
    """Return what is wrong with the value of an option, and the value."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        first = cause.errors()[0]
        message = validation_message(first)
        low, high = parameter.min, parameter.max
        if first["type"] in _OUT_OF_RANGE and None not in (low, high):
            message = f"must be between {low:g} and {high:g}"
        return f"{message}, got {first['input']}"
    return error.message or "is missing"


def _name(parameter: Any) -> str:
    """Return the long name of an option, or the name of an argument as the help shows it."""
    return max(parameter.opts, key=len) if isinstance(parameter, TyperOption) else parameter.name
