"""The package for Debian, built as `make deb` builds it, and the same once more under a higher version."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.support.bare_root import tail

BUILD_SECONDS = 900
TREES = "usr/lib/refgenfs"


def build_package(command: str, folder: Path, version: str) -> Path:
    """Build the package of this repository into a folder, by a command; return its file."""
    # compression is most of the work, and lintian most of the rest: `make deb` in a clone looks at that
    wanted = {"DEB_VERSION": version, "DEB_OUT": str(folder), "DEB_COMPRESSION": "-Znone", "BOOTSTRAP_NO_APT": "1"}
    done = subprocess.run(
        command.split(),
        cwd=REPOSITORY,
        env={**os.environ, **wanted},
        check=False,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, tail(done.stdout + done.stderr)
    (package,) = folder.glob(f"refgenfs_{version}_*.deb")
    return package


def next_package(package: Path, version: str, higher: str) -> Path:
    """Return what a package would be, were it built with a higher version: every place that names it names that."""
    folder = package.parent / "next"
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True, timeout=120)
    (folder / TREES / version).rename(folder / TREES / higher)
    link = folder / "usr/bin/refgenfs"
    link.unlink()
    link.symlink_to(f"/{TREES}/{higher}/bin/refgenfs")
    control = [*(folder / "DEBIAN").iterdir(), folder / TREES / higher / "bin/refgenfs"]
    for file in (*control, folder / TREES / higher / "pyvenv.cfg"):
        text = file.read_text()
        file.write_text(text.replace(version, higher))
    built = package.with_name(package.name.replace(version, higher))
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(folder), str(built)]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)
    return built
