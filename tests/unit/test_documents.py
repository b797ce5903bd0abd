"""Every command of the documentation is run by a test, or named by one; every piece of TOML is a configuration.

tests/fuse/test_documents.py and tests/system/test_documents.py run the commands. Here is what takes no mount.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from refgenfs.cli.app import build
from refgenfs.config.loading import load_config
from tests.conftest import REPOSITORY
from tests.support.documents import DATA, SHELL, Block, Command, Hidden, MarkError, commands, documents, parse, split
from tests.support.sessions import Ran, fits, judge, ran, script, typed

PAGES = [str(path.relative_to(REPOSITORY)) for path in documents()]
SAMPLE = """\
Text.

<!-- prepare: echo a >r1.fq
echo b >r2.fq -->

1. A list:

   <!-- file: ~/lab.toml -->
   ```toml
   [cache]
   size = "1GB"
   ```

   ```sh
   refgenfs mount ~/genomes   # as yourself
   # alone
   for a in 1 2; do
     echo $a
   done
   cat <<'END' | tr a-z A-Z
   it's
   END
   bwa mem \\
     x.fa
   ```

<!-- world: booted -->
```console
$ touch ~/genomes/x
touch: cannot touch '~/genomes/x': Read-only file system
$ echo 1 \\
> 2
```
<!-- run: tests/unit/test_documents.py::test_marks -->
```sh
make demo
```
"""


def blocks(page: str) -> list[Block]:
    steps = parse((REPOSITORY / page).read_text(), page)
    return [step for step in steps if isinstance(step, Block)]


# --- the extractor ------------------------------------------------------------------------------------------------


def test_marks() -> None:
    hidden, config, shell, console, elsewhere = parse(SAMPLE, "x.md")
    assert hidden == Hidden("x.md", 3, "echo a >r1.fq\necho b >r2.fq\n", "root")
    assert config == Block("x.md", 9, "toml", '[cache]\nsize = "1GB"\n', "root", file="~/lab.toml")
    assert isinstance(shell, Block)
    assert [command.text for command in commands(shell)] == [
        "refgenfs mount ~/genomes   # as yourself",
        "for a in 1 2; do\n  echo $a\ndone",
        "cat <<'END' | tr a-z A-Z\nit's\nEND",
        "bwa mem \\\n  x.fa",
    ]
    assert [command.place for command in commands(shell)] == ["x.md:15", "x.md:17", "x.md:20", "x.md:23"]
    assert isinstance(console, Block)
    assert commands(console) == [
        Command("x.md:29", "touch ~/genomes/x", "touch: cannot touch '~/genomes/x': Read-only file system\n"),
        Command("x.md:31", "echo 1 \\\n2", ""),
    ]
    assert isinstance(elsewhere, Block)
    assert elsewhere.test == "tests/unit/test_documents.py::test_marks"
    assert [item.text for item in typed([hidden, config, shell, console, elsewhere], "root")][:3] == [
        "echo a >r1.fq",
        "echo b >r2.fq",
        '[cache]\nsize = "1GB"\n',
    ]
    assert len(typed([hidden, config, shell, console, elsewhere], "booted")) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- runs: x -->", "no such mark"),
        ("<!-- run: because -->\n```sh\nls\n```", "names no test"),
        ("<!-- world: moon -->", "no world 'moon'"),
        ("<!-- file: /x -->\n", "the last mark has no block"),
        ("<!-- prepare: x", "the comment has no end"),
        ("<!-- prepare: -->", "and what?"),
        ("```sh\nls\n", "the block has no end"),
        ("```console\nls\n```", "begins with"),
        ("```sh\necho 'a\n```", "not whole"),
        ("```sh\nfor a in 1; do\n```", "not whole"),
    ],
)
def test_what_is_wrong_is_said(text: str, told: str) -> None:
    def read() -> list[list[Command]]:
        return [commands(step) for step in parse(text, "x.md") if isinstance(step, Block)]

    with pytest.raises(MarkError, match=told):
        read()


def test_scripts_are_split_into_commands() -> None:
    text = "a {b,c} ${d} # it's\n\nif x; then\n  y\nfi\ncat <<<z\necho '\n'\na |\n  b\n"
    assert split(text) == [
        (1, "a {b,c} ${d} # it's"),
        (3, "if x; then\n  y\nfi"),
        (6, "cat <<<z"),
        (7, "echo '\n'"),
        (9, "a |\n  b"),
    ]


def test_output_is_compared_loosely() -> None:
    shown = "GENOME  SIZE\nhg38    1.2 GB  0a2b333188fc48d8295e  Nov 21 04:09\n…\n~/x is mounted: 2 genomes\n"
    assert fits(shown, "GENOME SIZE\nhg38 17 kB 93f900aa1b3388fc48d8 Dec  1 14:59\na\nb\n~/x is mounted: 7 genomes\n")
    assert not fits(shown, "GENOME SIZE\nhg38 17 kB 93f900aa1b3388fc48d8 Dec  1 14:59\n~/y is mounted: 2 genomes\n")
    assert not fits("a\n", "a\nb\n")
    assert fits("/tmp/demo-…/x at -3 s\n", "/tmp/demo-53q7/x at 4 s\n")
    assert fits("from https://…/hg38.fa in 4 ms\n", "from https://x/y/hg38.fa in 31 s\n")
    assert not fits("memory\n", "mammary\n")


def test_a_session_tells_what_each_command_did() -> None:
    todo: list[Command | Block] = [Command("x:1", "echo 1"), Command("x:2", "false"), Command("x:3", "echo 3")]
    text = script(todo)
    assert text.index("echo 1") < text.index("false") < text.index("echo 3")
    printed = "\n\x1ebegin 0\n1\n\n\x1eend 0 0\n\n\x1ebegin 1\nno\n\n\x1eend 1 1\n"
    done = ran(todo, printed)
    assert [(one.status, one.printed) for one in done] == [(0, "1\n"), (1, "no\n")]
    assert judge(done[0], "/root") is None
    assert "no\n" in str(judge(done[1], "/root"))
    (hanging,) = ran(todo, "\n\x1ebegin 0\nx")
    assert "has not ended" in str(judge(hanging, "/root"))
    shown = Command("x:9", "touch ~/x", "touch: ~/x: no\n")
    assert judge(Ran(shown, 1, "touch: /root/x: no\n"), "/root") is None  # what fails and says what is shown is right
    assert "but the page shows" in str(judge(Ran(shown, 0, ""), "/root"))


# --- the pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_can_be_run_or_is_data(page: str) -> None:
    """A block with commands is run by its page's session, unless it names the test that runs it."""
    for block in blocks(page):
        assert block.language in {*SHELL, *DATA}, f"{block.place}: no test knows what {block.language} is"
        if block.language in SHELL:
            assert commands(block), f"{block.place}: no command in it"
        if block.language in {"", "text"}:
            assert not re.search(r"^\$ ", block.text, re.MULTILINE), f"{block.place}: a session is `console`"


def _plain(text: str) -> str:
    """Return code or a command as words with one blank between them, without quotes, commas and brackets."""
    return " ".join(re.sub(r"""["'(),\[\]]|\bf(?=["'])""", " ", text).split())


def _without_comments(code: str) -> str:
    return ast.unparse(ast.parse(code))


@pytest.mark.parametrize("page", PAGES)
def test_a_test_that_is_named_runs_the_commands(page: str) -> None:
    for block in (block for block in blocks(page) if block.test):
        path, _, name = block.test.partition("::")
        file = REPOSITORY / path
        assert file.exists(), f"{block.place}: there is no {path}"
        code = file.read_text()
        if name:
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            functions = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)}
            assert name in functions, f"{block.place}: there is no {block.test}"
        if f'"{page}"' in code:  # the test takes the block out of the page
            continue
        for command in commands(block):
            wanted = _plain(re.sub(r"\s#.*", "", command.text))
            assert wanted in _plain(_without_comments(code) if name else code), (
                f"{command.place}: {path} doesn't run `{wanted}`"
            )


@pytest.mark.parametrize("page", PAGES)
def test_toml_is_a_configuration(page: str, tmp_path: Path) -> None:
    for block in (block for block in blocks(page) if block.language == "toml"):
        file = tmp_path / "config.toml"
        file.write_text(f"{block.within}\n{block.text}" if block.within else block.text)
        load_config(file, {}, {"HOME": str(tmp_path)})


@pytest.mark.parametrize("page", PAGES)
def test_data_can_be_read(page: str) -> None:
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.language == "python":
            compile(block.text, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            for node in ast.parse(block.text).body:
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("refgenfs"):
                    module = importlib.import_module(node.module)
                    assert not [name.name for name in node.names if not hasattr(module, name.name)], block.place


_CODE = re.compile(r"`+([^`]+)`+")


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_have_these_names_and_options(page: str) -> None:
    """In running text, and in tables: `refgenfs mount -f` is checked against the program's own options."""
    text = (REPOSITORY / page).read_text()
    program = get_command(build())
    for code in _CODE.findall(re.sub(r"^ *(```|~~~).*?^ *\1", "", text, flags=re.MULTILINE | re.DOTALL)):
        words = " ".join(code.replace("\\|", "|").split())
        if words.startswith("refgenfs ") and (wrong := _wrong(program, words)):
            pytest.fail(f"{page}: `{words}`: {wrong}")


def _wrong(program: Any, text: str) -> str:
    """Return what is wrong with a command line of refgenfs, or an empty text."""
    try:
        words = shlex.split(text.replace("…", ""))[1:]
    except ValueError as exc:
        return str(exc)
    command = program
    while children := getattr(command, "commands", None):
        name = next((word for word in words if not word.startswith("-")), None)
        if name is None or not re.fullmatch(r"[a-z][a-z-]*", name):
            break
        if name not in children:
            return f"there is no {name}"
        words = words[words.index(name) + 1 :]
        command = children[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help", *(["--install-completion", "--show-completion"] if command is program else [])}
    used = {word.partition("=")[0].strip("[]") for word in words if re.match(r"\[?-", word)}
    return f"no option {', '.join(sorted(used - known))}" if used - known else ""
