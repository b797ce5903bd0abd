"""Where sockets and logs are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgenfs.core.errors import ControlError
from refgenfs.paths import (
    find_sockets,
    instance_name,
    log_path,
    make_runtime_dir,
    mountpoint_of,
    runtime_dir,
    socket_of,
    socket_path,
)

PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda part: part not in (".", "..")
)
POINTS = st.lists(PARTS, max_size=4).map(lambda parts: Path("/", *parts))


@pytest.mark.parametrize(
    ("mountpoint", "name"),
    [
        ("/genomes", "genomes"),
        ("/a/b", "a-b"),
        ("/a-b", "a%2Db"),
        ("/home/eve/100%/x", "home-eve-100%25-x"),
        ("/mnt/a b", "mnt-a%20b"),
        ("/", "-"),
    ],
)
def test_names(mountpoint: str, name: str) -> None:
    assert instance_name(Path(mountpoint)) == name
    assert mountpoint_of(name) == Path(mountpoint)


@given(POINTS)
def test_a_name_tells_its_mountpoint_and_fits(mountpoint: Path) -> None:
    name = instance_name(mountpoint)
    assert name.isascii()
    assert "/" not in name
    assert len(name) <= 48
    assert mountpoint_of(name) in (mountpoint, None)


@given(POINTS, POINTS)
def test_two_mountpoints_have_two_names(one: Path, other: Path) -> None:
    assert (instance_name(one) == instance_name(other)) == (one == other)


def test_a_name_that_is_no_text() -> None:
    mountpoint = Path(os.fsdecode(b"/mnt/\xff"))
    assert instance_name(mountpoint) == "mnt-%FF"
    assert mountpoint_of("mnt-%FF") == mountpoint


def test_long_mountpoints_differ_by_a_digest() -> None:
    names = {instance_name(Path("/", "x" * 200, end)) for end in "ab"}
    assert len(names) == 2
    assert {mountpoint_of(name) for name in names} == {None}


def test_folders() -> None:
    point = Path("/genomes")
    assert socket_path(point, {}, 0) == Path("/run/refgenfs/genomes.sock")
    assert socket_path(point, {"XDG_RUNTIME_DIR": "/run/user/7"}, 7) == Path("/run/user/7/refgenfs/genomes.sock")
    assert socket_path(point, {"XDG_RUNTIME_DIR": "/run/user/0"}, 0) == Path("/run/refgenfs/genomes.sock")
    assert runtime_dir({}, 7) == Path("/tmp/refgenfs-7")
    assert runtime_dir({"TMPDIR": "/scratch"}, 7) == Path("/scratch/refgenfs-7")
    assert runtime_dir({"REFGENFS_RUNTIME_DIR": "/r"}, 0) == Path("/r")
    assert log_path(point, {}, 0) == Path("/var/log/refgenfs/genomes.log")
    assert log_path(point, {"HOME": "/h"}, 7) == Path("/h/.local/state/refgenfs/genomes.log")
    assert log_path(point, {"HOME": "/h", "XDG_STATE_HOME": "/s"}, 7) == Path("/s/refgenfs/genomes.log")
    assert log_path(point, {}, 7) == Path("/tmp/refgenfs-7/genomes.log")


def test_the_runtime_directory_is_its_owners(tmp_path: Path) -> None:
    environ = {"REFGENFS_RUNTIME_DIR": str(tmp_path / "a" / "r")}
    uid = os.getuid()
    folder = make_runtime_dir(environ, uid)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert make_runtime_dir(environ, uid) == folder
    (folder / "genomes.sock").touch()
    assert find_sockets(environ, uid) == [folder / "genomes.sock"]
    if uid:  # in a directory of another user's, anybody could listen
        assert find_sockets(environ, uid + 1) == []
    with pytest.raises(ControlError, match="isn't your own"):
        make_runtime_dir(environ, uid + 1)


def test_a_runtime_directory_is_open_to_others_once_a_socket_in_it_is(tmp_path: Path) -> None:
    environ, uid = {"REFGENFS_RUNTIME_DIR": str(tmp_path / "r")}, os.getuid()
    assert make_runtime_dir(environ, uid, shared=True).stat().st_mode & 0o777 == 0o755
    assert make_runtime_dir(environ, uid).stat().st_mode & 0o777 == 0o755, "another daemon's is shared"
    (tmp_path / "r").chmod(0o777)
    assert make_runtime_dir(environ, uid).stat().st_mode & 0o777 == 0o755


@pytest.mark.needs_root
def test_the_machine_s_sockets_are_for_all_but_not_where_anybody_can_listen(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    environ = {"REFGENFS_RUNTIME_DIR": str(folder)}
    (make_runtime_dir(environ, 0, shared=True) / "genomes.sock").touch()
    assert find_sockets(environ, 1000) == [folder / "genomes.sock"]
    folder.chmod(0o1777)
    assert find_sockets(environ, 1000) == []


def test_a_runtime_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ControlError, match="can't be made"):
        make_runtime_dir({"REFGENFS_RUNTIME_DIR": str(tmp_path / "file" / "r")}, os.getuid())
    with pytest.raises(ControlError, match="isn't your own"):
        make_runtime_dir({"REFGENFS_RUNTIME_DIR": str(tmp_path / "link")}, os.getuid())
    assert find_sockets({"REFGENFS_RUNTIME_DIR": str(tmp_path / "nowhere")}, os.getuid()) == []


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_of_somebody_else_s_under_the_user_s_name_is_not_asked(tmp_path: Path, is_link: bool) -> None:
    """Anybody can make /tmp/refgenfs-1000, and listen there as the daemon of any mountpoint."""
    us, them = os.getuid() + 1001, os.getuid() or 1000
    environ, point, machine = {"TMPDIR": str(tmp_path)}, Path("/genomes"), Path("/run/refgenfs/genomes.sock")
    assert socket_of(point, environ, us) == machine, "it could be made in the next moment"
    folder = tmp_path / f"refgenfs-{us}"
    real = tmp_path / "real" if is_link else folder
    real.mkdir(mode=0o755)
    (real / "genomes.sock").touch()
    if is_link:
        folder.symlink_to(real)
    for path in {real, folder}:
        os.chown(path, them, -1, follow_symlinks=False)
    assert socket_of(point, environ, us) == machine
    assert socket_of(point, environ | {"REFGENFS_RUNTIME_DIR": str(folder)}, us) == folder / "genomes.sock"
    folder.rename(mine := tmp_path / f"refgenfs-{them}")
    if not is_link:
        assert socket_of(point, environ, them) == mine / "genomes.sock"
