"""The manual pages, made from the commands and the documentation, and the texts that only they have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from refgenfs import __version__
from refgenfs.cli.app import build
from tests.support import roff
from tests.unit.test_cli_doc import _commands, _plain, _usage

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "man"
CONFIGURATION = (REPOSITORY / "docs" / "configuration.md").read_text()
DATE = "2026-11-30"  # of the texts that are written here
PAGES = ("refgenfs.1", "refgenfs.toml.5", "mount.refgenfs.8")


def heading(page: str) -> list[str]:
    """Return the first lines of a page."""
    name, _, section = page.rpartition(".")
    return [
        r".\" made by: python -m tests.unit.test_man_pages",
        f'.TH {name.upper()} {section} {DATE} "refgenfs {__version__}"',
        ".nh",  # what is typed must not be broken, and most words here are
        ".ad l",
    ]


def texts(text: str) -> list[str]:
    """Return the source of a text of Markdown."""
    return [line for block in roff.blocks(text) for line in block]


def section(title: str, text: str) -> list[str]:
    """Return a section of a page."""
    return [f".SH {title}", *_without_first_paragraph(texts(text))]


def _without_first_paragraph(source: list[str]) -> list[str]:
    """Return a section's source without the macro that it begins with, which would be of no effect."""
    return source[1:] if source[:1] == [".PP"] else source


def chapters() -> dict[str, str]:
    """Return the sections of the page on configuration, by their headings."""
    split = re.split(r"^## (.*)\n", CONFIGURATION, flags=re.MULTILINE)
    return dict(zip(split[1::2], split[2::2], strict=True))


# -- refgenfs(1) ----------------------------------------------------------------------------------------------

DESCRIPTION = """\
`refgenfs` mounts a read-only tree of reference genomes, and fetches what is read of it, as it is read, into a cache
that has a bound. The genomes come from refgenie servers, web servers, buckets of S3, htsget servers and folders.

A KEY names what there is to read: `genome/asset[.seek_key][:tag]`, for example `hg38/bwa_index` or
`hg38/fasta.fai:default`. A genome goes by any of its aliases or its digest; without a tag the default tag is meant.
Without a seek key it is a path under the mountpoint as well: `/genomes/hg38/bwa_index`.

Commands that ask a running daemon find it by `-m`; else it is the one at the `mount.point` of the file given by `-c`,
or of the configuration in force where that sets it, and no other is asked. Where nothing names one, it is the only
one that runs.

What prints a table prints JSON with `--json`; a table in a pipe is plain text, one row a line. `refgenfs
--install-completion` sets up completion of commands and keys for your shell.
"""

FILES = """\
`~/.config/refgenfs/config.toml`, `/etc/refgenfs/config.toml`
: The configuration, refgenfs.toml(5); `-c` or `$REFGENFS_CONFIG` names another.

`/etc/refgenfs/NAME.toml`
: The configuration of the service `refgenfs@NAME`, and of `mount -t refgenfs NAME`.

`/var/cache/refgenfs`, `~/.cache/refgenfs`
: The cache: `cache.dir`. Made anew where it is missing.

`/run/refgenfs`, `$XDG_RUNTIME_DIR/refgenfs`
: Control sockets, one a mountpoint.

`/var/log/refgenfs/NAME.log`, `~/.local/state/refgenfs/NAME.log`
: The log of a daemon in the background; NAME is the mountpoint with `-` for `/`. A unit logs to the journal.

`/genomes`
: The mountpoint, unless another is named.
"""

EXIT_STATUS = """\
0
: Success.

1
: It failed; a line on standard error says what to do.

2
: The command line is wrong.

130
: Interrupted; what was fetched stays.

141
: Who read the output has gone.
"""

SIGNALS = """\
A daemon takes these. `refgenfs mount -f` and units run it in the foreground.

SIGHUP
: Takes a changed configuration, as `refgenfs reload` does, and asks every source for what it has.

SIGTERM, SIGINT
: Unmounts and ends; requests under way get 2 seconds.

SIGKILL
: Leaves a dead mountpoint, which the next `refgenfs mount` clears; what was fetched stays, and is checked as
  it is read.
"""

ATTRIBUTES = """\
Every file has the extended attributes `user.refgenfs.key`, `.digest`, `.origin` (how its bytes come), `.resident` (0
to 100, percent) and `.pinned`; see getfattr(1).
"""

SEE_ALSO = {
    "refgenfs.1": "refgenfs.toml(5), mount.refgenfs(8), fusermount3(1), systemctl(1), samtools(1), bwa(1)",
    "refgenfs.toml.5": "refgenfs(1), mount.refgenfs(8)",
    "mount.refgenfs.8": "refgenfs(1), refgenfs.toml(5), mount(8), fstab(5), autofs(5), systemd.automount(5)",
}


def _option(parameter: Any) -> list[str]:
    names = [rf"\fB{roff.literal(name)}\fR" for name in (*sorted(parameter.opts, key=len), *parameter.secondary_opts)]
    value = "" if parameter.is_flag else rf" \fI{roff.literal(parameter.metavar or parameter.type.name.upper())}\fR"
    told = _plain(parameter.help or "")
    if parameter.show_default is not False and not parameter.is_flag and parameter.default is not None:
        told += f" Default: {parameter.default:g}."
    return roff.entry(f"{', '.join(names)}{value}", told)


def _command(path: str, command: Any) -> list[str]:
    out = [f".SS {roff.literal(_usage(path, command))}", *roff.lines(_plain(command.help or ""))]
    for parameter in command.params:
        if parameter.param_type_name == "argument" and parameter.help:
            name = roff.literal(parameter.metavar or parameter.name.upper())
            out += roff.entry(rf"\fI{name}\fR", _plain(parameter.help))
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            out += _option(parameter)
    examples = [line for line in (command.epilog or "").splitlines()[1:] if line.strip()]
    return [*out, *(roff.example(_shown(line) for line in examples) if examples else [])]


def _shown(line: str) -> str:
    return re.sub(r"\[/?(?:bold|dim)\]", "", line)


def commands_page() -> list[str]:
    """Return refgenfs(1)."""
    root: Any = get_command(build())
    out = [*heading("refgenfs.1"), ".SH NAME", r"refgenfs \- mount reference genomes as a read-only file system"]
    out += [".SH SYNOPSIS", r"\fBrefgenfs mount\fR [\fIOPTIONS\fR] [\fIMOUNTPOINT\fR]", ".br"]
    out += [r"\fBrefgenfs\fR \fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]", ".br"]
    out += [r"\fBrefgenfs\fR [\fICOMMAND\fR] \fB\-\-help\fR"]
    out += section("DESCRIPTION", DESCRIPTION)
    out += [".SH COMMANDS", *roff.lines("Every command has `-h`, `--help`.")]
    for path, command in _commands(root, "refgenfs"):
        out += _command(path, command)
    out += section("EXTENDED ATTRIBUTES", ATTRIBUTES)
    out += section("FILES", FILES)
    out += section("ENVIRONMENT", chapters()["Environment"])
    out += section("EXIT STATUS", EXIT_STATUS)
    out += section("SIGNALS", SIGNALS)
    lines = [_shown(line) for line in (root.epilog or "").splitlines()[1:] if line.strip()]
    out += [".SH EXAMPLES", *roff.example(lines)[1:]]
    return [*out, *see_also("refgenfs.1")]


def see_also(page: str) -> list[str]:
    """Return the section on other pages."""
    names = [re.sub(r"(\S+?)(\(\d\),?)", r"\\fB\1\\fR\2", name) for name in SEE_ALSO[page].split(" ")]
    documents = "Other names that are printed in no bold, as sources or made files, are pages of the documentation."
    return [".SH SEE ALSO", *names, *roff.paragraph(documents)]


# -- refgenfs.toml(5) -----------------------------------------------------------------------------------------


def configuration_page() -> list[str]:
    """Return refgenfs.toml(5): the documentation's page, without what is about the command line."""
    parts = chapters()
    out = [*heading("refgenfs.toml.5"), ".SH NAME", r"refgenfs.toml \- configuration of refgenfs"]
    out += [
        ".SH SYNOPSIS",
        r"\fI\(ti/.config/refgenfs/config.toml\fR",
        ".br",
        r"\fI/etc/refgenfs/config.toml\fR",
        ".br",
    ]
    out += [r"\fI/etc/refgenfs/NAME.toml\fR"]
    out += section("DESCRIPTION", CONFIGURATION.partition("\n## ")[0].partition("\n")[2] + "\n" + parts["The file"])
    out += [
        ".SH SETTINGS",
        *roff.lines("A key's table is the word before its dot: `cache.size` is `size` in `[cache]`."),
    ]
    for title, text in parts.items():
        if title.startswith(("`[", "`[[")):
            out += [f".SS {roff.inline(title.replace('`', ''))}", *_without_first_paragraph(texts(text))]
    out += section("FILES", FILES)
    return [*out, *see_also("refgenfs.toml.5")]


# -- mount.refgenfs(8) ----------------------------------------------------------------------------------------

HELPER = """\
mount(8), systemd and autofs call it for lines of fstab with the type `refgenfs`. It starts a daemon, and returns when
the tree answers. The daemon runs as who mounts, which is root most often; `refgenfs@NAME.service` runs one that has
no rights, and comes back by itself (`refgenfs service install`).

*CONFIG* is a configuration, refgenfs.toml(5): a path, a name (`lab` is `/etc/refgenfs/lab.toml`), or `none` for
the one at the usual place.

What root mounts is readable by every user, unless the configuration has `mount.allow_other = false`. A mount that is
there already, with the same configuration, is left alone. `remount` is refused: `refgenfs reload` takes a changed
configuration, other options are taken by umount and mount.
"""

HELPER_OPTIONS = """\
`-f`
: Checks the call and mounts nothing.

`-s`
: Passes over options that are not known.

`-v`
: Says what was mounted.

`-n`, `-r`, `-w`, `-N` NAMESPACE, `-t` TYPE
: Are taken, for mount(8) gives them, and change nothing.
"""

HELPER_STATUS = """\
0
: It is mounted, and the tree answers.

1
: The configuration, an option or the call is wrong.

8
: Interrupted.

32
: The mount failed.

The reason is on standard error, and in the daemon's log.
"""

HELPER_EXAMPLES = """\
By hand:

```
mount -t refgenfs lab /genomes
mount -t refgenfs -o cache_size=20GB /etc/refgenfs/lab.toml /genomes
```

In fstab(5), mounted at the first access:

```
lab /genomes refgenfs _netdev,nofail,x-systemd.automount 0 0
```

In a map of autofs(5):

```
lab -fstype=refgenfs,cache_dir=/var/cache/refgenfs-lab :/etc/refgenfs/lab.toml
```
"""

HELPER_FILES = """\
`/sbin/mount.refgenfs`, `/sbin/mount.fuse.refgenfs`
: The helper, where mount(8) looks.

`/etc/refgenfs/NAME.toml`
: The configuration NAME.

`/var/log/refgenfs`
: Logs of daemons that root mounted.
"""


def helper_page() -> list[str]:
    """Return mount.refgenfs(8)."""
    options = next(text for title, text in chapters().items() if title.startswith("`-o`"))
    meanings = dict(re.findall(r"^\| `([a-z_.]+)` \|[^|]*\|[^|]*\| (.*?)[.:](?: |$)", CONFIGURATION, re.MULTILINE))
    options = re.sub(
        r"\| `([a-z_.]+)` \|$", lambda row: f"| {meanings[row[1]]}. Sets `{row[1]}`. |", options, flags=re.M
    )
    out = [*heading("mount.refgenfs.8"), ".SH NAME", r"mount.refgenfs \- mount reference genomes, for mount(8)"]
    out += [".SH SYNOPSIS", r"\fBmount \-t refgenfs\fR [\fB\-o\fR \fIOPTIONS\fR] \fICONFIG\fR \fIDIRECTORY\fR", ".br"]
    out += [r"\fBmount.refgenfs\fR \fICONFIG\fR \fIDIRECTORY\fR [\fB\-sfnvrw\fR] [\fB\-o\fR \fIOPTIONS\fR]"]
    out += section("DESCRIPTION", HELPER)
    out += section("OPTIONS", HELPER_OPTIONS)
    out += [".SH MOUNT OPTIONS", *_without_first_paragraph(texts(options))]
    out += section("FILES", HELPER_FILES)
    out += section(
        "ENVIRONMENT", "Who calls may have none: `PATH` is set where it is missing. Proxies go by refgenfs.toml(5)."
    )
    out += section("EXIT STATUS", HELPER_STATUS)
    out += section("EXAMPLES", HELPER_EXAMPLES)
    return [*out, *see_also("mount.refgenfs.8")]


def render(page: str) -> str:
    """Return a page's source."""
    made = {"refgenfs.1": commands_page, "refgenfs.toml.5": configuration_page, "mount.refgenfs.8": helper_page}
    return "\n".join(made[page]()) + "\n"
