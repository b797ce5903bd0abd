"""What mount(8) asks of its helper, without a mount: arguments, configurations, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from refgenfs.cli import run
from refgenfs.cli.mount_helper import FAILED, USAGE, Request, find_config, main, parse
from refgenfs.cli.mount_options import known_options
from refgenfs.core.errors import ConfigError


def test_arguments_as_mount_gives_them() -> None:
    assert parse(["lab", "/genomes", "-o", "rw,_netdev"]) == Request("lab", "/genomes", "rw,_netdev")
    assert parse(["lab", "/genomes", "-o", "ro", "-o", "nofail"]).options == "ro,nofail"
    assert parse(["-sfnv", "-t", "fuse.refgenfs", "-N", "/proc/1/ns/mnt", "lab", "/genomes"]) == Request(
        "lab", "/genomes", "", fake=True, verbose=True, sloppy=True
    )
    assert parse(["lab", "/genomes", "-r"]).options == "ro"


@pytest.mark.parametrize("arguments", [[], ["lab"], ["lab", "/a", "/b"], ["lab", "/a", "-x"], ["lab", "/a", "-o"]])
def test_a_wrong_call_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == USAGE
    assert "mount -t refgenfs CONFIG DIRECTORY" in capsys.readouterr().err


def test_the_first_field_is_a_configuration(tmp_path: Path) -> None:
    named = tmp_path / "lab.toml"
    named.touch()
    assert find_config("lab", tmp_path) == named
    assert find_config("/etc/x.toml", tmp_path) == Path("/etc/x.toml")
    assert [find_config(word, tmp_path) for word in ("none", "refgenfs", "default", "-")] == [None] * 4
    with pytest.raises(ConfigError, match=r"there is no .*/nobody.toml"):
        find_config("nobody", tmp_path)


def test_a_remount_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mount.refgenfs", "refgenfs", "/genomes", "-o", "rw,remount"]) == USAGE
    told = capsys.readouterr().err
    assert told.startswith("mount.refgenfs: /genomes can't be remounted: ")
    assert "`refgenfs reload /genomes`" in told


def test_a_fake_mount_does_nothing(tmp_path: Path) -> None:
    assert main(["none", str(tmp_path / "absent"), "-f"]) == 0
    assert not (tmp_path / "absent").exists()


def test_a_mount_that_can_not_come_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "lab.toml"
    config.write_text(f'[cache]\ndir = "{tmp_path}/cache"\n')
    (tmp_path / "file").touch()
    assert main([str(config), str(tmp_path / "file")]) == FAILED
    assert "is no directory" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.toml"), str(tmp_path / "g")]) == USAGE
    assert "no such file" in capsys.readouterr().err


def test_sloppy_leaves_out_what_is_unknown() -> None:
    text = "rw,sloppy=1,cache_size=20GB,x-systemd.automount,limits.memory=1GB,what,cache_dir=/a\\,b"
    assert known_options(text) == "rw,cache_size=20GB,x-systemd.automount,limits.memory=1GB,cache_dir=/a\\,b"
