"""`docs/cli.md` is made from the commands themselves: `python -m tests.unit.test_cli_doc` writes it anew."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from refgenfs.cli.app import build

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cli.md"

HEAD = """\
# Command line

One program, `refgenfs`. Exit status: 0 on success, 2 where the command line is wrong, 1 for everything else (130 when
interrupted). An error is a line on standard error that says what to do. What prints a table prints JSON with
`--json`; a table in a pipe is plain text, one row a line.

A KEY names what there is to read: `genome/asset[.seek_key][:tag]`, for example `hg38/bwa_index` or
`hg38/fasta.fai:default`. A genome goes by any of its aliases or its digest; without a tag the default tag is meant.

Commands that ask a running daemon find it by `-m`; else it is the one at the `mount.point` of the file given by `-c`,
or of the configuration in force where that sets it, and no other is asked. Where nothing names one, it is the only
one that runs. Every user may ask one that serves all of them, and is told what they may read; what binds others
(`pin`, `evict`, `cache clear`, `umount` …) is for root and the user who mounted.

`refgenfs --install-completion` sets up completion of commands and keys for your shell. `REFGENFS_DEBUG=1` shows the
traceback of an unexpected error.

This page is made from the commands' own help.
"""


# What the examples of a command are typed after: the page's commands are run in order, on one machine.
PREPARED = {
    "refgenfs mount": 'printf \'[mount]\\npoint = "lab"\\n[cache]\\ndir = "c"\\n\' >lab.toml',
    "refgenfs list": "refgenfs umount ~/genomes",
    "refgenfs web": "refgenfs umount; refgenfs mount -o web_listen=127.0.0.1:9417 /genomes; export BROWSER=true",
    "refgenfs index": "mkdir a; curl -sO https://www.example.org/bwa_index__default.tgz; cp *.tgz a",
}


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name in children:
        if children[name].hidden:  # for units, not for people
            continue
        yield from _commands(children[name], f"{path} {name}")


def _plain(text: str) -> str:
    """Return help text on one line, without markup."""
    return " ".join(re.sub(r"\[/?(?:bold|dim)\]", "", text).split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _usage(path: str, command: Any) -> str:
    words = [path]
    if any(parameter.param_type_name == "option" for parameter in command.params):
        words.append("[OPTIONS]")
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            word = parameter.metavar or parameter.name.upper()
            words.append(word if parameter.required else f"[{word}]")
    return " ".join(words)


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*sorted(parameter.opts, key=len), *parameter.secondary_opts))
    if not parameter.is_flag:
        names += f" {parameter.metavar or parameter.type.name.upper()}"
    help_text = _plain(parameter.help or "")
    if parameter.show_default is not False and not parameter.is_flag and parameter.default is not None:
        help_text += f" Default: {parameter.default:g}."
    return f"| {_cell(names)} | {_cell(help_text)} |"


def _section(path: str, command: Any) -> str:
    lines = [f"## `{path}`", "", _plain(command.help or ""), "", "```", _usage(path, command), "```"]
    arguments = [p for p in command.params if p.param_type_name == "argument" and p.help]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    if arguments or options:
        lines += ["", "| argument or option | meaning |", "|---|---|"]
        lines += [f"| {_cell(p.metavar or p.name.upper())} | {_cell(_plain(p.help))} |" for p in arguments]
        lines += [_option(p) for p in options]
    examples = [line for line in (command.epilog or "").splitlines()[1:] if line.strip()]
    if examples:
        shown = [re.sub(r"\[/?(?:bold|dim)\]", "", line) for line in examples]
        prepared = [f"<!-- prepare: {PREPARED[path]} -->"] if path in PREPARED else []
        lines += ["", *prepared, "```sh", *shown, "```"]
    return "\n".join(lines)


def render() -> str:
    """Return the whole page."""
    sections = [_section(path, command) for path, command in _commands(get_command(build()), "refgenfs")]
    return HEAD + "\n" + "\n\n".join(sections) + "\n"


def test_the_page_is_what_the_commands_say() -> None:
    assert DOCUMENT.read_text() == render(), "run: python -m tests.unit.test_cli_doc"


def test_every_command_has_a_help_and_every_option_too() -> None:
    for path, command in _commands(get_command(build()), "refgenfs"):
        assert command.help, path
        assert all(parameter.help for parameter in command.params), path


if __name__ == "__main__":
    DOCUMENT.write_text(render())
    sys.stderr.write(f"{DOCUMENT} written\n")
