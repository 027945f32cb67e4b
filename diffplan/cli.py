"""The command line: ``diffplan COMMAND OBJECT --flags``; flags are named as the Python arguments.

Nothing heavy is imported before a command runs, so that help is instant. What a user can cause ends in one line on
standard error and an exit code: 1 failed, 2 wrong usage, 130 Ctrl-C, 143 terminated. ``--debug`` shows the traceback.
"""

import contextlib
import io
import os
import re
import select
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from itertools import pairwise
from typing import Annotated, Any, Union, get_args

import tyro

from diffplan import __version__
from diffplan.commands import COMMANDS, Command
from diffplan.commands.group import Group

EXPECTED = (ValueError, OSError, ImportError, RuntimeError, FloatingPointError)


DESCRIPTION = """\
Diffusion models that plan for several robots at once.

For example, everything at once in minutes:
  diffplan demo

or step by step:
  diffplan collect crossing-v0 --out data/crossing --episodes 1000
  diffplan train data/crossing --out runs/crossing
  diffplan plan runs/crossing --plot plan.png
  diffplan evaluate runs/crossing --episodes 100

Each command has its own --help with examples; --debug shows the traceback of an error.
"""


class UsageError(ValueError):
    """The arguments do not make a command."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    if sys.platform == "linux" and not ({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)):
        os.environ.setdefault("MUJOCO_GL", "egl")  # without a screen MuJoCo's default cannot draw
    debug, arguments = "--debug" in arguments, [one for one in arguments if one != "--debug"]
    words = 2 if isinstance(COMMANDS.get((*arguments, "")[0]), Group) else 1
    name = " ".join(["diffplan", *(one for one in arguments[:words] if arguments[0] in COMMANDS and one[:1] != "-")])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal cannot write is no reason to fail
    resumable = False
    try:
        with terminable():
            if arguments == ["--version"]:
                print(f"diffplan {__version__}", flush=True)
                return 0
            if any(flag in ("--out", "--plot") and not value for flag, value in pairwise(arguments)):
                raise UsageError("--out or --plot is followed by nothing: a variable that is not set?")
            command = parse(arguments or ["--help"])
            if not 0 <= getattr(command, "seed", 0) < 2**63:
                raise UsageError(f"--seed {getattr(command, 'seed', 0)}: seeds are 0 or more, and below 2^63.")
            resumable = hasattr(command, "resume")
            code = command.run() or 0
            sys.stdout.flush()
            return code
    except (SystemExit, KeyboardInterrupt) as end:
        code = int(end.code or 0) if isinstance(end, SystemExit) else 130
        if word := {130: "interrupted", 143: "terminated"}.get(code):
            onwards = " --resume goes on from there." * resumable
            print(f"{name}: {word}; everything that was written is whole.{onwards}", file=sys.stderr)
        return code  # of --help, too
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        if debug:
            raise
        print(f"{name}: {one_line(error)} (--help shows examples, --debug the traceback)", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _nobody_reads() -> bool:
    """Whether who reads our output has seen enough; the rest of it then goes nowhere."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def parse(arguments: list[str]) -> Command:
    """The command that the arguments describe. Raises ``UsageError`` in one line, ``SystemExit`` after ``--help``."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return _parse(arguments)
    except SystemExit as end:
        if end.code != 2:
            raise
        raise UsageError(_without_box(errors.getvalue())) from end


def _parse(
    arguments: list[str],
    commands: Mapping[str, Any] = COMMANDS,
    prog: str = "diffplan",
    description: str = DESCRIPTION,
) -> Any:
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    if arguments and arguments[0] in commands:
        prog, command = f"{prog} {arguments[0]}", commands[arguments[0]]
        if isinstance(command, Group):
            return _parse(arguments[1:], command.load(), prog, cleandoc(command.text))
        return tyro.cli(command, prog=prog, description=_about(command), args=arguments[1:], config=config)
    kinds = [
        Annotated[_Listed, tyro.conf.subcommand(name, description=_about(command).splitlines()[0])]
        for name, command in commands.items()
    ]
    either: Any = Union[tuple(kinds)]  # noqa: UP007
    return tyro.cli(either, prog=prog, description=description, args=arguments[:1], config=config)


@dataclass
class _Listed:
    """Stands for a command where all are listed."""


def _about(command: Any) -> str:
    """What a command does; of one that is made for a format (``Import[Omar]``) that format's words."""
    if isinstance(command, Group):
        return cleandoc(command.text)
    text = cleandoc((get_args(command) or (command,))[0].__doc__ or "")
    return text.split("\n\nArgs:")[0]


def _without_box(text: str) -> str:
    """The sentences of tyro's error box, without its frame, its title, its help texts and its pointer to --help."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", text)
    _, *parts = (" ".join(part.split()) for part in re.split(r"[─-]{3,}", text))
    return "; ".join(part for part in parts if part and not part.startswith(("For full helptext", "Argument helptext")))


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM end the body as an exception does: files are closed, workers stopped, the exit code is 143."""

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
