"""`docs/error-messages.md` has every text of an error.

`python -m tests.unit.test_error_messages_doc` writes the page anew.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from refgenfs.core import errors
from refgenfs.fuse import ERRNOS
from tests.support.messages import Message, error_kinds, error_texts

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "error-messages.md"

HEAD = """\
# Error messages

Every text of an error that refgenfs has, by what it is about, for a search in this page; "…" is what is filled in.
[Troubleshooting](troubleshooting.md) goes by what you see. In the log, a text comes after the request and the kind of
error: `read of FILE failed: KIND: TEXT (ERRNO), for PROGRAM (PID)`. On the command line it stands alone. What a
request to an origin met has the URL before it, and the attempt after it: `URL: TEXT (attempt 7)`.

This page is made from the code; the kinds of errors and their errnos are those of `core/errors.py` and
`fuse/errnos.py`.
"""


@dataclass(frozen=True, slots=True)
class Family:
    """Texts about one thing: what they mean in common, and what to do. `modules` are beginnings of paths."""

    title: str
    advice: str
    modules: str


FAMILIES = (
    Family(
        "The network and the origin",
        "An origin is out of reach, refuses, or answers with what can't be right. Each was asked as often as makes "
        "sense, and at every mirror. Look at the URL from the same machine (`curl -I URL`), at `proxy`, tokens and "
        "certificates of the source, and at `refgenfs status`. What is said to have *other bytes now* was replaced "
        "at its origin: open the file again.",
        "core/httprange.py fetch/answers.py fetch/attempts.py fetch/blocks.py fetch/bridge.py fetch/credentials.py "
        "fetch/http.py "
        "fetch/legs.py fetch/parts.py fetch/pieces.py fetch/proxies.py fetch/session.py fetch/spools.py "
        "fetch/streams.py fetch/transfers.py fetch/urls.py",
    ),
    Family(
        "Buckets of S3",
        "Keys, region and name of the bucket: [buckets of S3](troubleshooting.md#buckets-of-s3).",
        "fetch/s3.py core/s3.py sources/s3.py",
    ),
    Family(
        "Folders of a local source",
        "The folder can't be read, or isn't what it was: its rights, and whether its file system is mounted.",
        "fetch/local.py sources/local.py",
    ),
    Family(
        "Catalogs, lists and pages of folders",
        "What a server says that it has can't be read, or is too much. Nothing is changed then: the last catalog is "
        "shown. Look at `url`, `layout` and `manifest` of the source ([sources](sources.md)).",
        "core/catalog_json.py core/manifest.py core/patterns.py core/refgenie.py core/shapes.py sources/ "
        "catalog/flights.py",
    ),
    Family(
        "Names",
        "No source has it, or not any more. `refgenfs list` shows what there is. On the mount this is No such file "
        "or directory, and no line of the log.",
        "core/catalog.py core/keys.py catalog/ library/ tree/ administration/parts.py",
    ),
    Family(
        "Archives",
        "The archive is damaged, cut short, or holds what no reference archive may hold. Nothing of it is shown "
        "that isn't right; what came is dropped. Tell the server's administrator.",
        "core/tar.py core/tarheader.py fetch/archive.py fetch/inflating.py fetch/libz.py",
    ),
    Family(
        "Seek indices",
        "A seek index is damaged, or of another archive. It is dropped, and the archive is streamed, which is "
        "slower and as right. Who runs the origin makes it anew with `refgenfs index`.",
        "core/seekindex.py core/memberlist.py fetch/indexing.py fetch/seekpoints.py fetch/spans.py reader/index",
    ),
    Family(
        "Reads",
        "What a read waited for did not come, or may not be shown. *Taken back*, *another version*: open the file "
        "again. *Given up*, *unexpected*: read again; the line before it in the log says why.",
        "reader/ deadlines.py",
    ),
    Family(
        "The cache",
        "Its folder, its room, its disk: [the cache](troubleshooting.md#the-cache). While the daemon runs, reads go "
        "on without it.",
        "cache/ cli/cache.py administration/residency.py",
    ),
    Family(
        "Tickets of htsget servers",
        "What a htsget server answers is no ticket, or not for what was asked: `url`, `reads`, `variants`, `format` "
        "of the source ([htsget](htsget.md)).",
        "core/ticket.py fetch/ticket",
    ),
    Family(
        "BAM, CRAM, VCF, BCF and their indices",
        "A file or its index is damaged, or the index is of another file: index it again (`samtools index`, "
        "`tabix`). A query (`refgenfs ticket`, a folder of `regions/`) has a reference or positions that can't be.",
        "core/htsget/ core/regions.py htsfiles.py regions/ administration/tickets.py",
    ),
    Family(
        "FASTA and sequences by MD5",
        "A FASTA and its `.fai`, `.gzi` or dictionary don't fit each other, or a refget server sent another "
        "sequence ([CRAM](troubleshooting.md#a-cram-doesnt-decode)).",
        "core/fasta.py made/sequences.py made/servers.py",
    ),
    Family(
        "Indices that are made",
        "The data can have no such index, or what makes it failed "
        "([indices](troubleshooting.md#indices-are-not-there)).",
        "made/ core/indices.py",
    ),
    Family(
        "Requests of the kernel",
        "Rights, and what would write.",
        "fuse/",
    ),
    Family(
        "Mounting, and the service",
        "FUSE, the mountpoint, the daemon's start: [mounting fails](troubleshooting.md#mounting-fails), [the "
        "service](troubleshooting.md#the-service-fstab-and-autofs).",
        "mountpoint.py handover.py launch.py paths.py daemon.py cli/mount cli/installing.py cli/service.py",
    ),
    Family(
        "The configuration",
        "`refgenfs config check` names every mistake ([configuration](configuration.md)).",
        "config/ reload.py cli/configuration.py cli/reloading.py",
    ),
    Family(
        "The command line and the daemon",
        "A command finds no daemon, or asks what can't be ([a command finds no "
        "daemon](troubleshooting.md#a-command-finds-no-daemon)).",
        "cli/ control administration/ tracing.py web",
    ),
    Family(
        "The demo",
        "[The demo](troubleshooting.md#the-demo).",
        "demo/",
    ),
)
# Never seen: those who wait for them go another way.
_INNER = {"SpansUseless", "IndexLost", "StreamIdle", "SinkClosed", "Rerouted", "RangesIgnored", "PartRefused"}
_INNER |= {"Unfit", "TooSlow", "NotIndexed", "SizeUnknown", "Unchecked", "LibzMissing"}


def family_of(module: str) -> Family | None:
    """Return the family with the longest beginning of a module's path."""
    fitting = {one: family for family in FAMILIES for one in family.modules.split() if module.startswith(one)}
    return fitting[max(fitting, key=len)] if fitting else None


def _errno_of(kind: str) -> str:
    by_name = {one.__name__: number for one, number in ERRNOS.items()}
    number = next((by_name[name] for name in error_kinds()[kind] if name in by_name), errno.EIO)
    return errno.errorcode[number]


def _kinds() -> list[str]:
    lines = [
        "## Kinds of errors",
        "",
        "| kind | means | errno, if a program meets it | it says |",
        "|---|---|---|---|",
    ]
    for name, one in vars(errors).items():
        if isinstance(one, type) and issubclass(one, errors.RefgenfsError) and name not in _INNER:
            what = (one.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()
            number = _errno_of(name)
            lines.append(f"| `{name}` | {what} | {number} | {os.strerror(getattr(errno, number))} |")
    return lines


def _row(message: Message) -> str:
    text = re.sub(r"\s+", " ", message.text).replace("|", "\\|").replace("`", "'").strip()
    return f"| `{text}` | `{message.kind}` |"


def shown() -> list[Message]:
    """Return the texts that somebody can meet."""
    return [message for message in error_texts() if message.kind not in _INNER]


def render() -> str:
    """Return the whole page."""
    lines = [HEAD, *_kinds()]
    for family in FAMILIES:
        rows = {_row(message) for message in shown() if family_of(message.module) is family}
        lines += ["", f"## {family.title}", "", family.advice, "", "| text | kind |", "|---|---|"]
        lines += sorted(rows, key=lambda row: re.sub(r"\W", "", row).lower())
    return "\n".join(lines) + "\n"


def test_the_page_is_what_the_code_says() -> None:
    assert DOCUMENT.read_text() == render(), "run: python -m tests.unit.test_error_messages_doc"


def test_every_error_is_of_a_family() -> None:
    assert sorted({message.module for message in shown() if family_of(message.module) is None}) == []
    for family in FAMILIES:
        assert any(family_of(message.module) is family for message in shown()), family.title


def test_inner_errors_are_still_there() -> None:
    assert set(error_kinds()) >= _INNER


def test_texts_are_found_wherever_they_stand() -> None:
    texts = {(message.kind, message.text) for message in shown()}
    assert ("OriginDenied", "…, access denied") in texts, "of an attempt that failed"
    assert ("ReadOnly", "the tree is read-only") in texts
    assert any("has no refget" in text or "not listed within" in text for _, text in texts), "by way of a variable"


if __name__ == "__main__":
    DOCUMENT.write_text(render())
    sys.stderr.write(f"{DOCUMENT} written\n")
