"""A bare root of the host's own distribution, made by debootstrap, and entered in namespaces of its own.

What a site needs to reach its mirrors (proxies, certificates, local folders of wheels) is asked of the host's apt and
pip, and carried over. `REFGENFS_BARE_SUITE` names another suite on the same mirror.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.untimed import untimed

PROGRAMS = ("debootstrap", "unshare", "git", "tar", "apt-get", "apt-config")

BASE_SECONDS = 900  # debootstrap over a slow line
BASE_DAYS = 30  # a cached root older than this is made anew

# A minimal root has no make; whoever types `git clone` and `make` has installed those two.
BASE_PACKAGES = "make"

# The first process of the namespaces: mounts, enters, runs. It waits, so that orphaned daemons are reaped.
ENTER = r"""
set -eu
root=$1 archives=$2 clone=$3 folders=$4
shift 4
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount --bind "$archives" "$root/var/cache/apt/archives"
printf '%s' "$folders" | while IFS= read -r folder; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
done
status=0
chroot "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$clone" "$@" || status=$?
exit "$status"
"""


@dataclass(frozen=True, slots=True)
class Site:
    """What the host knows of where packages come from: all that a new machine on this site would be told."""

    suite: str
    components: str
    mirror: str
    apt_settings: str
    environment: Mapping[str, str]
    certificates: Mapping[str, Path]  # environment variable → the bundle it names
    folders: tuple[Path, ...]  # local folders that pip installs from


# ---------------------------------------------------------------- what the host knows


def find_site() -> Site:
    """Return where the host's apt and pip get packages from."""
    release = platform.freedesktop_os_release()
    suite = os.environ.get("REFGENFS_BARE_SUITE") or release["VERSION_CODENAME"]
    settings = apt_settings()
    environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    proxy = re.search(r'^Acquire::http::Proxy "(http.*)";$', settings, re.MULTILINE)
    if proxy:
        environment.setdefault("http_proxy", proxy[1])
    pip = pip_settings()
    bundles = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
    certificates = {name: Path(os.environ[name]) for name in bundles if name in os.environ}
    if cert := pip.pop("cert", None):
        certificates["PIP_CERT"] = Path(cert)
    environment |= {f"PIP_{key.upper().replace('-', '_')}": value for key, value in pip.items()}
    return Site(
        suite=suite,
        components="main,universe" if release["ID"] == "ubuntu" else "main",
        mirror=apt_mirror(suite),
        apt_settings=settings,
        environment=environment,
        certificates={name: path for name, path in certificates.items() if path.is_file()},
        folders=pip_folders(pip),
    )


def apt_mirror(suite: str) -> str:
    """Return the URL the host's apt has for a suite, or of its main archive when it has only others."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = ask("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines()
    archives = [line.split()[:2] for line in listed if line.endswith(" main")]
    named = [url for url, release in archives if release == suite]
    plain = [url for url, release in archives if not re.search(r"security|updates|backports", release)]
    if not named + plain:
        pytest.fail("apt-get indextargets names no main archive on this host")
    url = (named + plain)[0]
    if url.startswith("mirror+file:"):  # a list of mirrors, one a line, the best first
        url = Path(url.removeprefix("mirror+file:").rstrip("/")).read_text().split()[0]
    return url


def apt_settings() -> str:
    """Return how the host's apt downloads: proxies, retries, checks; nothing that names a file."""
    dump = ask("apt-config", "dump").splitlines()
    kept = [line for line in dump if re.match(r'Acquire::(?!IndexTargets)[^ ]*[^: ] "[^/"][^"]*";$', line)]
    return "".join(f"{line}\n" for line in kept)


def pip_settings() -> dict[str, str]:
    """Return the host's pip settings that say where packages come from, by their long option's name."""
    wanted = re.compile(
        r"index-url|extra-index-url|find-links|no-index|trusted-host|proxy|cert|default-timeout|timeout|retries"
    )
    settings = {}
    for line in ask(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in {"global", "install", ":env:"} and wanted.fullmatch(key):
            settings[key] = " ".join(str(ast.literal_eval(value)).split())
    return settings


def pip_folders(settings: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the local folders among pip's indexes and links."""
    folders = set()
    for key in ("index-url", "extra-index-url", "find-links"):
        for place in settings.get(key, "").split():
            url = urlsplit(place)
            if url.scheme not in {"", "file"} or not url.path.startswith("/"):
                continue
            folder = Path(unquote(url.path))
            # The pages of an index point to files that lie beside the index's own folder.
            if key.endswith("index-url") and len(folder.parts) > 2:
                folder = folder.parent
            if folder.is_dir():
                folders.add(folder)
    return tuple(sorted(folders))


def ask(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


# ---------------------------------------------------------------- the bare root


def run_apart(argv: Sequence[str], seconds: float, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a command in mount and process namespaces of its own; return its exit status and all it printed.

    Whatever it mounted or left running is gone on return, also after a timeout, which fails the test.
    """
    apart = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL")
    base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    base |= {"LANG": "C.UTF-8", "TERM": "dumb"}
    with tempfile.TemporaryFile("w+") as output:
        try:
            status = subprocess.run(
                [*apart, *argv],
                env={**base, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            output.seek(0)
            pytest.fail(f"not done after {seconds:.0f} s: {' '.join(argv[-4:])}\n{tail(output.read())}")
        output.seek(0)
        return status, output.read()


def tail(text: str) -> str:
    return "\n".join(text.splitlines()[-60:])


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Have one process at a time make, or use, what is in a shared cache; waiting is not a test's own time."""
    with (cache / f"{name}.lock").open("w") as lock:
        with untimed():
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_base(site: Site, cache: Path) -> Path:
    """Return a tar file of a minimal root of the suite, made by debootstrap unless the cache has it."""
    with locked(cache, "base"):
        return _make_base(site, cache)


def _make_base(site: Site, cache: Path) -> Path:
    base = cache / f"{site.suite}-{platform.machine()}.tar"
    if base.exists() and time.time() - base.stat().st_mtime < BASE_DAYS * 86400:
        return base
    with tempfile.TemporaryDirectory(dir=cache, prefix="base-") as folder:
        root = Path(folder) / "root"
        options = ["--variant=minbase", f"--include={BASE_PACKAGES}", f"--components={site.components}"]
        argv = ["debootstrap", *options, site.suite, str(root), site.mirror]
        status, output = run_apart(argv, BASE_SECONDS, site.environment)
        assert status == 0, f"debootstrap {site.suite} failed:\n{tail(output)}"
        made = Path(folder) / "root.tar"
        subprocess.run(["tar", "-C", root, "--numeric-owner", "-cf", made, "."], check=True, timeout=300)
        made.replace(base)
    return base


def configure(root: Path, site: Site) -> dict[str, str]:
    """Tell a new root what the site knows, and return the environment to run commands in it with."""
    for name in ("resolv.conf", "hosts"):
        (root / "etc" / name).unlink(missing_ok=True)
        shutil.copyfile(Path("/etc") / name, root / "etc" / name)
    (root / "etc/apt/apt.conf.d/90site").write_text(site.apt_settings)
    local = Path("/usr/local/share/ca-certificates")
    if local.is_dir():
        shutil.copytree(local, root / local.relative_to("/"), dirs_exist_ok=True)
    environment = dict(site.environment)
    bundles = root / "etc/site-certificates"
    bundles.mkdir()
    for name, bundle in site.certificates.items():
        shutil.copyfile(bundle, bundles / f"{name}.pem")
        environment[name] = f"/etc/site-certificates/{name}.pem"
    return environment


@pytest.fixture(scope="session")
def root_cache() -> Path:
    """A folder on a real disk that outlives the run: a root with its packages is too much for some /tmp."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "refgenfs-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def site() -> Site:
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if run_apart(["mount", "-t", "tmpfs", "none", "/mnt"], 20, {})[0] != 0:
        pytest.skip("needs the right to mount in a namespace of its own")
    return find_site()
