"""The command line's commands, in the panels that `--help` shows."""

from __future__ import annotations

from typing import Annotated

import typer

from refgenfs import __version__
from refgenfs.cli import (
    cache,
    configuration,
    demonstrate,
    doctor,
    explaining,
    find,
    index,
    mounting,
    reloading,
    residency,
    service,
    state,
    ticket,
    watching,
    webpage,
)

_MOUNT = "Mount"
_FIND = "Find"
_KEEP = "Keep on this machine"
_SET_UP = "Set up"
_OFFER = "Offer to others"
_WATCH = "Watch"


def _examples(*lines: str) -> str:
    """Return an epilog: commands, each with what it does, one a line of a narrow terminal."""
    pairs = [line.split("  # ") for line in lines]
    width = max(len(command) for command, _ in pairs)
    rows = (f"{command.ljust(width)}  [dim]# {what}[/dim]" for command, what in pairs)
    return "\n".join(("[bold]Examples[/bold]", *rows))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refgenfs {__version__}")
        raise typer.Exit


def _root(
    _: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def build() -> typer.Typer:
    """Return the application with all its commands."""
    app = typer.Typer(
        name="refgenfs",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Reference genomes as files: mount a refgenie server, and read what you need of it.\n\n"
        "A KEY names what there is to read: genome/asset[.seek_key][:tag], for example hg38/bwa_index or "
        "hg38/fasta.fai:default. Without a seek key it is a path under the mountpoint as well.\n\n"
        "`man refgenfs` has all commands on a page, `man refgenfs.toml` every setting.",
        epilog=_examples(
            "refgenfs mount  # or: refgenfs mount DIR",
            "refgenfs list hg38  # what there is",
            "bwa mem $(refgenfs seek hg38/bwa_index) r1.fq r2.fq  # like any file",
            "refgenfs status  # what was fetched",
        ),
    )
    app.callback()(_root)
    _add_mount(app)
    _add_find(app)
    _add_watch(app)
    _add_keep(app)
    _add_set_up(app)
    _add_offer(app)
    return app


def _add_mount(app: typer.Typer) -> None:
    app.command(
        rich_help_panel=_MOUNT,
        epilog=_examples(
            "refgenfs mount ~/genomes  # as yourself",
            "refgenfs mount -c lab.toml -f  # foreground",
            "refgenfs mount -o cache_dir=/scratch,allow_other /genomes  # with settings",
        ),
    )(mounting.mount)
    app.command(rich_help_panel=_MOUNT)(mounting.umount)
    app.command(rich_help_panel=_MOUNT)(state.status)
    app.command(rich_help_panel=_MOUNT)(reloading.reload)


def _add_find(app: typer.Typer) -> None:
    app.command(
        "list",
        rich_help_panel=_FIND,
        epilog=_examples(
            "refgenfs list  # the genomes",
            "refgenfs list hg38  # the assets of one",
            "refgenfs list --json hg38/fasta  # its tags, for programs",
        ),
    )(find.list_)
    app.command(rich_help_panel=_FIND)(find.info)
    app.command(
        rich_help_panel=_FIND,
        epilog=_examples(
            "samtools faidx $(refgenfs seek hg38/fasta) chr1:1-100  # a file",
            "refgenfs seek hg38/fasta.fai  # another of its files",
            "refgenfs seek hg38/bowtie2_index.dir:second  # another tag",
        ),
    )(find.seek)
    app.command("id", rich_help_panel=_FIND)(find.id_)
    app.command(
        rich_help_panel=_FIND,
        epilog=_examples(
            "refgenfs ticket hg38/na12878 chr20:1-50000 > t.json  # a region",
            "samtools view t.json  # reads it from the origin",
            "refgenfs ticket --class header hg38/na12878  # the header",
        ),
    )(ticket.ticket)


def _add_watch(app: typer.Typer) -> None:
    app.command(
        rich_help_panel=_WATCH,
        epilog=_examples(
            "refgenfs explain /genomes/hg38/fasta/hg38.fa  # a file",
            "refgenfs explain --offset 1GiB --length 1MiB hg38/fasta.fasta  # a part of it",
            "refgenfs explain hg38/bwa_index  # all files of an asset",
        ),
    )(explaining.explain)
    app.command(
        rich_help_panel=_WATCH,
        epilog=_examples(
            "refgenfs metrics | grep bytes_total  # what was served and fetched",
            "refgenfs metrics > refgenfs.prom  # for a textfile collector",
        ),
    )(watching.metrics)
    app.command(
        rich_help_panel=_WATCH,
        epilog=_examples(
            "refgenfs trace  # all of it, as it happens",
            "refgenfs trace --waits  # only what waits, and for what",
            "refgenfs trace --json --for 60 > reads.jsonl  # a minute, for programs",
        ),
    )(watching.trace)

    app.command(
        "web",
        rich_help_panel=_WATCH,
        epilog=_examples(
            "refgenfs web  # where the status page is",
            "refgenfs web --open  # and show it in a browser",
        ),
    )(webpage.web)


def _add_keep(app: typer.Typer) -> None:
    app.command(
        rich_help_panel=_KEEP,
        epilog=_examples(
            "refgenfs pull hg38/bwa_index  # fetch it before a run",
            "refgenfs pull --pin hg38/fasta hg38/fasta.fai  # and keep it",
            "refgenfs pull --pin --for job-7 --lease 2d hg38/fasta  # for a job, two days at most",
        ),
    )(residency.pull)
    app.command(rich_help_panel=_KEEP)(residency.pin)
    app.command(
        rich_help_panel=_KEEP,
        epilog=_examples(
            "refgenfs unpin hg38/fasta  # one that was pinned",
            "refgenfs unpin --for job-7  # all that was pinned for a job",
        ),
    )(residency.unpin)
    app.command(rich_help_panel=_KEEP)(residency.pins)
    app.command(rich_help_panel=_KEEP)(residency.evict)
    group = typer.Typer(no_args_is_help=True, help="Look into the cache, check it, empty it.")
    group.command()(cache.info)
    group.command()(cache.verify)
    group.command()(cache.clear)
    app.add_typer(group, name="cache", rich_help_panel=_KEEP)


def _add_set_up(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Show the configuration in force; check it.")
    group.command()(configuration.show)
    group.command()(configuration.check)
    app.add_typer(group, name="config", rich_help_panel=_SET_UP)
    units = typer.Typer(no_args_is_help=True, help="Install units for systemd and the helper of mount(8).")
    units.command()(service.install)
    units.command()(service.uninstall)
    for called_by_others in (service.attach, service.tune, service.detach, service.renew):
        units.command(hidden=True)(called_by_others)
    app.add_typer(units, name="service", rich_help_panel=_SET_UP)
    app.command(rich_help_panel=_SET_UP)(doctor.doctor)
    app.command(rich_help_panel=_SET_UP)(demonstrate.demo)


def _add_offer(app: typer.Typer) -> None:
    app.command(
        rich_help_panel=_OFFER,
        epilog=_examples(
            "refgenfs index bwa_index__default.tgz  # writes bwa_index__default.tgz.seekidx",
            'for a in */*.tgz; do refgenfs index "$a"; done  # a folder of archives',
        ),
    )(index.index)
