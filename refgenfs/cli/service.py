"""`service`: install what systemd and mount(8) need, and what the units call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refgenfs.cli.options import ConfigFile
from refgenfs.cli.output import note, write

if TYPE_CHECKING:
    from refgenfs.config import LoadedConfig
    from refgenfs.notify import ServiceManager

Root = Annotated[
    Path,
    typer.Option(
        "--root", metavar="DIR", help="Below this directory, for a package or an image.", show_default=False
    ),
]
Answer = Annotated[
    bool | None,
    typer.Option(
        "--yes/--no",
        help="Whether to keep updatedb out of the genomes. Without it: asks, and on no terminal leaves it alone.",
        show_default=False,
    ),
]


def install(root: Root = Path("/"), answer: Answer = None) -> None:
    """Install units for systemd, the user that they run as, the helper of mount(8), and manual pages.

    A package has done that.
    """
    from refgenfs.cli import installing

    there = root == Path("/") and installing.is_packaged()
    if there:
        note("the units and the helper of mount(8) came with the package")
    else:
        for path in installing.install(root):
            write(f"{path}")
    _keep_updatedb_out(root, answer)
    if root == Path("/") and not there:
        for line in installing.activate():
            note(line)
        write("Try: write /etc/refgenfs/lab.toml, then `systemctl enable --now refgenfs@lab`")


def uninstall(root: Root = Path("/")) -> None:
    """Remove what `install` installed. Configurations, caches, the user and running daemons stay."""
    from refgenfs.cli import installing

    if root == Path("/") and installing.is_packaged():
        raise installing.InstallFailed("they came with the package: `apt remove refgenfs` removes them")
    for path in installing.uninstall(root):
        write(f"{path} is removed")


def renew() -> None:
    """Have instances run this version of the package, but for those whose files are open (its postinst)."""
    from refgenfs.cli import renewing

    for line in renewing.renew():
        write(line)


def _keep_updatedb_out(root: Path, answer: bool | None) -> None:
    from refgenfs.cli import installing

    path = root / "etc/updatedb.conf"
    wanted = installing.pruned(path)
    if wanted is None:
        return
    if answer is None and os.isatty(0):
        answer = typer.confirm(f"Keep updatedb out of the genomes, with {installing.FSTYPE} in PRUNEFS of {path}?")
    if answer:
        path.write_text(wanted)
        write(f"{path}: updatedb keeps out of the genomes")
    else:
        note(f"{path} is as it was: add {installing.FSTYPE} to its PRUNEFS, or updatedb lists the genomes")


def attach(config: ConfigFile = None) -> None:
    """Mount for a unit's daemon, and hand the mount over (`ExecStartPre=+`)."""
    from refgenfs import handover

    loaded = _load(config)
    handover.attach(loaded.config.mount.point, os.environ, _manager(), for_all=handover.serves_all(loaded))


def tune(config: ConfigFile = None) -> None:
    """Raise the kernel's limits for a unit's mount (`ExecStartPost=+`)."""
    from refgenfs import handover

    mount = _load(config).config.mount
    handover.tune(mount.point, mount.readahead, os.environ)


def detach(config: ConfigFile = None) -> None:
    """Take a unit's mount away when its daemon has ended (`ExecStopPost=+`)."""
    from refgenfs import handover

    handover.detach(_load(config).config.mount.point, os.environ, _manager())


def _load(config: Path | None) -> LoadedConfig:
    from refgenfs.cli.connection import canonical
    from refgenfs.config import load_config

    loaded = load_config(config, {}, os.environ)
    point = loaded.config.mount.point
    return loaded if canonical(point) == point else load_config(config, {"mount.point": canonical(point)}, os.environ)


def _manager() -> ServiceManager:
    from refgenfs.notify import ServiceManager

    return ServiceManager.of(os.environ, os.getpid())
