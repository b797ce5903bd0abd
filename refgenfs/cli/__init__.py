"""The `refgenfs` command: it talks to people, and to a running daemon through its control socket."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from refgenfs.core.errors import RefgenfsError

# What the parsers of the command line say, and how it is said here.
_PLAINER = (
    (" (Possible options: --help)", ""),
    (", unable to parse string as a number", ""),
    (", unable to parse string as an integer", ""),
    ("Input should be greater than or equal to", "must be at least"),
    ("Input should be less than or equal to", "must be at most"),
    ("Input should be", "must be"),
    ("Got unexpected extra argument(s)", "Too many arguments:"),
    ("Got unexpected extra argument ", "Too many arguments: "),
    ("Got unexpected extra arguments ", "Too many arguments: "),
)
_INTERRUPTED = "interrupted; what was fetched stays"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 on success, 2 where the command line is wrong, 1 for everything else.

    An error is a line on standard error that says what to do. A defect shows one line too, and its traceback
    where REFGENFS_DEBUG is set.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "✓" gets "?"
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except RefgenfsError as exc:
        return _fail(str(exc))
    except KeyboardInterrupt:
        return _fail(_INTERRUPTED, 130)
    except BrokenPipeError:
        # whoever read our output has gone (`refgenfs list | head`); Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as exc:  # the last resort: one line for people, all of it on request
        if os.environ.get("REFGENFS_DEBUG"):
            raise
        return _fail(f"{type(exc).__name__}: {exc}; this is a defect: REFGENFS_DEBUG=1 shows where")


def _run(arguments: Sequence[str]) -> int:
    if len(arguments) == 2 and arguments[0] in ("seek", "id") and not arguments[1].startswith("-"):
        return _run_at_once(*arguments)
    if arguments and arguments[0] == "mount.refgenfs":
        from refgenfs.cli import mount_helper

        return mount_helper.main(arguments[1:])
    import typer
    from typer.main import get_command

    from refgenfs.cli.app import build

    usage_error, click_error = _click_errors(typer.BadParameter)
    try:
        status = get_command(build()).main(args=list(arguments), prog_name="refgenfs", standalone_mode=False)
    except typer.Abort as exc:
        # what typer makes of an interrupt, up to some version; after it, an exit with 130
        interrupted = isinstance(exc.__cause__ or exc.__context__, KeyboardInterrupt)
        return _fail(_INTERRUPTED, 130) if interrupted else _fail("nothing done", 1)
    except click_error as exc:
        return _usage(exc) if isinstance(exc, usage_error) else _fail(str(exc))
    if status == 130:
        return _fail(_INTERRUPTED, 130)
    return status if isinstance(status, int) else 0


def _run_at_once(command: str, key: str) -> int:
    """Run `seek KEY` or `id KEY` without the parser: scripts call them often, and it takes half of their time."""
    from refgenfs.cli import find

    (find.seek if command == "seek" else find.id_)(key)
    return 0


def _click_errors(bad_parameter: type[Exception]) -> tuple[type[Exception], type[Exception]]:
    """Return click's UsageError and ClickException; typer has its own copy of click, or imports click."""
    usage_error, click_error = bad_parameter.__mro__[1:3]
    assert issubclass(usage_error, Exception)
    assert issubclass(click_error, Exception)
    return usage_error, click_error


def _usage(exc: BaseException) -> int:
    """Say what is wrong with a command line; a command without arguments has shown its help already."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        sys.stdout.write(f"{exc}\n" if str(exc).strip() else "")
        return 2
    context = getattr(exc, "ctx", None)
    command = context.command_path if context else "refgenfs"
    message = " ".join(exc.format_message().split()) if hasattr(exc, "format_message") else str(exc)
    for theirs, plain in _PLAINER:
        message = message.replace(theirs, plain)
    return _fail(f"{message[:1].lower()}{message[1:].rstrip('.')} (`{command} --help` shows how)", 2)


def _fail(message: str, status: int = 1) -> int:
    for line in message.splitlines() or ["failed"]:
        sys.stderr.write(f"refgenfs: {line}\n")
    return status
