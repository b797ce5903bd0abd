"""The tar parser on archives that real programs made, and on archives that nobody should make."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from refgenfs.core.errors import ArchiveError
from refgenfs.core.links import LinkTarget, resolve_link
from refgenfs.core.tar import NEED_DATA, TarLimits, TarParser
from tests.support.tars import END, entry, header, make_tar, padded, parse, pax

DIGEST = "0a2b333188fc48d8295e580c99c97902df678aefe20b5cf4"
TIME = 1_700_000_000

# ---------------------------------------------------------------- what real programs make


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder `default` as an index asset has it, with long names, links and a file of several blocks."""
    top = tmp_path / "default"
    (top / "deep" / ("d" * 120)).mkdir(parents=True)
    (top / "_refgenie_build").mkdir()
    (top / "_refgenie_build" / "log.md").write_text("how it was made")
    (top / f"{DIGEST}.fa.bwt").write_bytes(os.urandom(300_001))
    (top / f"{DIGEST}.fa.amb").write_bytes(b"")
    (top / "exact").write_bytes(b"x" * 1024)
    (top / "deep" / ("d" * 120) / ("f" * 130)).write_bytes(b"long name")
    (top / "höhe").write_bytes(b"not ASCII")
    (top / f"{DIGEST}.fa").symlink_to(f"/builder/data/{DIGEST}/fasta/default/{DIGEST}.fa")
    (top / "long_link").symlink_to("x/" * 60 + "y")
    os.link(top / "exact", top / "same")
    os.mkfifo(top / "pipe")
    for path in [*top.rglob("*"), top]:
        os.utime(path, (TIME, TIME), follow_symlinks=False)
    return top


def check_tree(archive: bytes, top: Path, *, hard_links: bool = True) -> None:
    seen = parse(archive)
    assert seen.ended
    assert seen.complete == len(seen.members)
    assert sorted(seen.names) == sorted(str(path.relative_to(top)) for path in top.rglob("*"))
    for member in seen.members:
        path = top / member.name
        assert member.mtime == TIME
        if member.name.startswith("_refgenie_build") or member.name == "pipe":
            assert member.kind == "other"
            assert seen.data[member.name] == b""
        elif path.is_symlink():
            assert (member.kind, member.target) == ("link", os.readlink(path))
        elif path.is_dir():
            assert (member.kind, member.size) == ("dir", 0)
        elif member.kind == "hardlink":
            assert hard_links
            assert {member.name, member.target} == {"exact", "same"}
            assert member.size == 1024
        else:
            assert member.kind == "file"
            assert member.size == path.stat().st_size
            assert seen.data[member.name] == path.read_bytes()
            assert archive[member.offset : member.offset + member.size] == path.read_bytes()


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix"])
@pytest.mark.parametrize("start", ["default", "./default"])
def test_gnu_tar(tree: Path, form: str, start: str) -> None:
    command = ["tar", "-C", str(tree.parent), f"--format={form}", "-cf", "-", start]
    check_tree(subprocess.run(command, check=True, capture_output=True).stdout, tree)


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_gnu_tar_without_what_the_format_lacks(tree: Path, form: str) -> None:
    (tree / "long_link").unlink()
    (tree / f"{DIGEST}.fa").unlink()
    (tree / "link").symlink_to("exact")
    (tree / "deep" / ("d" * 120) / ("f" * 130)).unlink()
    (tree / "deep" / ("d" * 120)).rmdir()
    if form == "v7":
        (tree / "pipe").unlink()
    for path in [*tree.rglob("*"), tree]:
        os.utime(path, (TIME, TIME), follow_symlinks=False)
    command = ["tar", "-C", str(tree.parent), f"--format={form}", "-cf", "-", "default"]
    check_tree(subprocess.run(command, check=True, capture_output=True).stdout, tree)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_python_tarfile(tree: Path, tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "made.tar", "w", format=form) as archive:
        archive.add(tree, "default")
    check_tree((tmp_path / "made.tar").read_bytes(), tree)


def test_incremental_and_labelled_archives(tree: Path) -> None:
    base = ["tar", "-C", str(tree.parent), "--format=gnu", "-cf", "-"]
    for options in (["--incremental"], ["--label=genomes"], ["-b", "64"]):
        made = subprocess.run([*base, *options, "default"], check=True, capture_output=True)
        check_tree(made.stdout, tree)


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    with (tmp_path / "top" / "holes").open("wb") as file:
        file.truncate(1 << 22)
        file.seek(1 << 21)
        file.write(b"x" * 4096)
    base = ["tar", "-C", str(tmp_path), "-S", "-cf", "-", "top"]
    for options in (["--format=gnu"], ["--format=pax"], ["--format=pax", "--sparse-version=0.1"]):
        made = subprocess.run([*base, *options], check=True, capture_output=True)
        with pytest.raises(ArchiveError, match="sparse"):
            parse(made.stdout)


def test_an_asset_named_top_folder_and_files_before_their_folder() -> None:
    seen = parse(
        entry(b"bwa_index/a/b", b"1") + entry(b"bwa_index/", flag=b"5") + entry(b"bwa_index/a/", flag=b"5") + END
    )
    assert [(member.name, member.kind) for member in seen.members] == [("a/b", "file"), ("a", "dir")]


# ---------------------------------------------------------------- the formats, byte by byte


def test_prefix_is_used_with_the_posix_magic_only() -> None:
    assert parse(header(b"n", prefix=b"top/p") + END).names == ["p/n"]
    assert parse(header(b"top/n", prefix=b"atime", magic=b"ustar  ") + END).names == ["n"]
    assert parse(header(b"top/n", prefix=b"junk", magic=b"") + END).names == ["n"]


def test_numbers() -> None:
    big = 10 << 30
    member = parse(header(b"t/n", size=b"\x80" + big.to_bytes(11)) + b"first").members[0]
    assert member.size == big
    assert parse(header(b"t/n", mtime=b"\xff" * 12) + END).members[0].mtime == -1
    assert parse(header(b"t/n", mtime=b"\x80" + b"\xff" * 11) + END).members[0].mtime < 1e10
    assert parse(header(b"t/n", size=b"     3 \0    ") + padded(b"abc") + END).data == {"n": b"abc"}
    assert parse(header(b"t/n", size=bytes(12), mtime=b"777777777777") + END).members[0].size == 0


def test_signed_checksums_are_accepted() -> None:
    block = header("t/é".encode())
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    assert parse(block[:148] + b"%06o\0 " % signed + block[156:] + END).names == ["é"]


def test_v7_folders_and_unknown_types() -> None:
    seen = parse(entry(b"t/d/", flag=b"\0") + entry(b"t/d/f", b"1", b"\0") + entry(b"t/c", b"22", b"7") + END)
    assert [member.kind for member in seen.members] == ["dir", "file", "file"]
    seen = parse(entry(b"t/new", b"333", b"Z") + END)
    assert (seen.members[0].kind, seen.data["new"]) == ("file", b"333")


def test_the_folder_around_the_top_folder_is_nothing() -> None:
    assert parse(entry(b"./") + entry(b".", flag=b"5") + entry(b"./t/", flag=b"5") + END).names == []


def test_devices_are_reported_as_other() -> None:
    seen = parse(b"".join(header(b"t/" + flag, flag) for flag in (b"3", b"4", b"6")) + END)
    assert [member.kind for member in seen.members] == ["other"] * 3


def test_pax_overrides_size_time_and_names() -> None:
    records = (b"path", "t/né".encode()), (b"size", b"3"), (b"mtime", b"12.5"), (b"comment", b"a=b\nc")
    seen = parse(pax(*records) + header(b"t/other", size=7) + padded(b"abc") + END)
    assert seen.members[0].name == "né"
    assert (seen.members[0].mtime, seen.data["né"]) == (12.5, b"abc")
    seen = parse(pax((b"path", b"t/\xff")) + header(b"t/other") + END)
    assert os.fsencode(seen.names[0]) == b"\xff"
    link = parse(pax((b"linkpath", b"x" * 200)) + header(b"t/l", b"2", link=b"short") + END).members[0]
    assert link.target == "x" * 200


def test_global_pax_headers_hold_for_all_that_follow() -> None:
    archive = (
        pax((b"mtime", b"7"), (b"comment", b"c"), flag=b"g") + entry(b"t/a") + pax((b"mtime", b"8")) + entry(b"t/b")
    )
    assert [member.mtime for member in parse(archive + END).members] == [7, 8]


def test_hard_links_lead_to_the_file() -> None:
    archive = entry(b"t/a", b"12") + header(b"t/b", b"1", link=b"./t/a") + header(b"t/c", b"1", link=b"t/b")
    archive += header(b"t/l", b"2", link=b"a") + header(b"t/m", b"1", link=b"t/l")
    members = parse(archive + END).members[1:]
    assert [(member.kind, member.target, member.size) for member in members] == [
        ("hardlink", "a", 2),
        ("hardlink", "a", 2),
        ("link", "a", 0),
        ("link", "a", 0),
    ]


def test_data_is_not_copied() -> None:
    parser = TarParser()
    fed = entry(b"t/a", b"x" * 5000)
    parser.feed(fed)
    parser.next_event()
    data = parser.next_event()
    assert getattr(data, "data").obj is fed  # noqa: B009


def test_what_follows_the_end_is_ignored() -> None:
    parser = TarParser()
    parser.feed(entry(b"t/a") + END + b"rubbish" * 1000)
    while parser.next_event() is not NEED_DATA and not parser.ended:
        pass
    parser.feed(b"more")
    assert parser.ended
    assert parse(entry(b"t/a") + END + b"rubbish" * 1000).names == ["a"]


# ---------------------------------------------------------------- what is refused

HOSTILE = [
    (entry(b"/etc/passwd"), "absolute name, '/etc/passwd'"),
    (entry(b"t/../../etc/passwd"), "'..', 't/../../etc/passwd'"),
    (entry(b"../x"), "'..'"),
    (entry(b"t/./x"), "'.'"),
    (entry(b"t//x"), "an empty name"),
    (entry(b".//x"), "an empty name"),
    (entry(b""), "an empty name"),
    (entry(b"t/x/", b"data"), "can have no data, 4 bytes"),
    (header(b"t/l", b"2", size=512, link=b"a") + bytes(512), "can have no data"),
    (header(b"t/d/", b"5", size=512) + bytes(512), "can have no data"),
    (header(b"t/p", b"6", size=512) + bytes(512), "can have no data"),
    (entry(b"alone"), "outside a top folder"),
    (entry(b"./alone"), "outside a top folder"),
    (entry(b"t/a") + entry(b"u/a"), "more than one top folder: 't' and 'u'"),
    (entry(b"t/a", b"1") + entry(b"t/a", b"2"), "'a' twice"),
    (entry(b"t/a", b"1") + entry(b"./t/a", b"2"), "'a' twice"),
    (entry(b"t/a/", flag=b"5") + entry(b"t/a", b"2"), "'a' twice"),
    (entry(b"t/a/b") + entry(b"t/a", b"2"), "'a' twice"),
    (entry(b"t/a") + entry(b"t/a/b"), "'a', which is no folder"),
    (header(b"t/a", b"2", link=b"/etc") + entry(b"t/a/b/c"), "'a', which is no folder"),
    (header(b"t/a", b"1", link=b"t/b"), "not before it"),
    (header(b"t/a", b"1", link=b"t/a"), "not before it"),
    (entry(b"t/b") + header(b"t/a", b"1", link=b"b"), "more than one top folder"),
    (entry(b"t/b") + header(b"t/a", b"1", link=b"/t/b"), "absolute name"),
    (entry(b"t/b") + header(b"t/a", b"1", link=b"t/../t/b"), "'..'"),
    (entry(b"t/d/", flag=b"5") + header(b"t/a", b"1", link=b"t/d"), "not before it"),
    (pax((b"path", b"t/a\0b")) + entry(b"t/a"), "a NUL"),
    (pax((b"path", b"t/" + b"n" * 256)) + entry(b"t/a"), "too long"),
    (pax((b"path", b"t/" + b"n" * 200 + b"/n" * 2000)) + entry(b"t/a"), "too long"),
    (pax((b"path", b"t" + b"/n" * 65)) + entry(b"t/a"), "too long"),
    (pax((b"path", b"")) + entry(b"t/a"), "an empty name"),
    (pax((b"path", b"/abs")) + entry(b"t/a"), "absolute"),
    (pax((b"linkpath", b"a\0b")) + header(b"t/l", b"2"), "impossible target"),
    (pax((b"linkpath", b"a" * 4097)) + header(b"t/l", b"2"), "impossible target"),
    (pax((b"size", b"-1")) + entry(b"t/a"), "the size '-1'"),
    (pax((b"size", b"9" * 19)) + entry(b"t/a"), "the size"),
    (pax((b"mtime", b"nan")) + entry(b"t/a"), "the time 'nan'"),
    (pax((b"GNU.sparse.major", b"1")) + entry(b"t/a"), "sparse"),
    (pax((b"SCHILY.realsize", b"1")) + entry(b"t/a"), "sparse"),
    (pax((b"path", b"t/x")) + pax((b"path", b"t/y")) + entry(b"t/a"), "two pax headers"),
    (pax((b"path", b"t/x")) + entry(b"L", b"t/y\0", b"L") + entry(b"t/a"), "in two ways"),
    (entry(b"L", b"t/x\0", b"L") * 2 + entry(b"t/a"), "two long names"),
    (entry(b"L", b"t/x\0y\0", b"L") + entry(b"t/a"), "a NUL"),
    (pax((b"path", b"t/x"), flag=b"g") + entry(b"t/a"), "global pax header with one path"),
    (pax((b"size", b"1"), flag=b"g") + entry(b"t/a"), "global pax header with one size"),
    (pax((b"path", b"t/x")) + END, "announces a member"),
    (entry(b"x", b"11 path=t/x\n", b"x"), "can't be parsed"),
    (entry(b"x", b"5 a=", b"x"), "can't be parsed"),
    (entry(b"x", b"99 path=t/x\n", b"x"), "can't be parsed"),
    (entry(b"x", b"6 pat\n", b"x"), "can't be parsed"),
    (entry(b"x", b"path=t/x\n", b"x"), "can't be parsed"),
    (header(b"t/s", b"S", size=512) + bytes(512), "a sparse file"),
    (header(b"t/s", b"M", size=512) + bytes(512), "another volume"),
    (header(b"t/n", size=b"\xff" * 12), "impossible size"),
    (header(b"t/n", size=b"\x80" + b"\xff" * 11), "impossible size"),
    (header(b"t/n", size=b"000000000x\0\0"), "no size"),
    (header(b"t/n", size=b"-0000000001\0"), "no size"),
    (entry(b"t/a") + bytes(512) + entry(b"t/b"), "lone zero block"),
    (b"\x1f\x8b" + bytes(510), "checksum"),
    (b"<html>not found</html>" * 30, "no checksum"),
    (header(b"t/a" + b"\xff" * 10)[:-1] + b"\1", "checksum"),
]


@pytest.mark.parametrize(("archive", "message"), HOSTILE, ids=[message for _, message in HOSTILE])
def test_refused(archive: bytes, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        parse(archive + END)


def test_a_refusal_is_final() -> None:
    parser = TarParser()
    parser.feed(entry(b"/etc/passwd") + entry(b"t/a") + END)
    for _ in range(3):
        with pytest.raises(ArchiveError, match="absolute"):
            parser.next_event()
        parser.feed(entry(b"t/a"))


def test_limits() -> None:
    three = b"".join(entry(b"t/%d" % number) for number in range(3)) + END
    assert len(parse(three, limits=TarLimits(members=3)).members) == 3
    with pytest.raises(ArchiveError, match="more than 2 members"):
        parse(three, limits=TarLimits(members=2))
    with pytest.raises(ArchiveError, match="more than 2 members"):
        parse(pax((b"comment", b"c"), flag=b"g") * 3, limits=TarLimits(members=2))
    with pytest.raises(ArchiveError, match="a pax header of"):
        parse(pax((b"comment", b"c" * 1000)), limits=TarLimits(extension=1000))
    with pytest.raises(ArchiveError, match="a long name of 1048577 bytes"):
        parse(header(b"L", b"L", size=(1 << 20) + 1))
    with pytest.raises(ArchiveError, match="names of more than 100 bytes"):
        parse(entry(b"t/" + b"n" * 60) + entry(b"t/" + b"m" * 60), limits=TarLimits(names=100))


# ---------------------------------------------------------------- symbolic links

BUILDER = f"/builder/data/{DIGEST}/fasta/default"


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("a", "b", LinkTarget("b")),
        ("d/a", "b", LinkTarget("d/b")),
        ("d/a", "../b", LinkTarget("b")),
        ("d/a", ".././e//f/./g", LinkTarget("e/f/g")),
        ("a", "d/../b", LinkTarget("b")),
        ("a", "../b", None),
        ("a", "d/../../t/b", None),
        ("d/a", "..", None),
        ("a", ".", None),
        ("a", "a", None),
        ("a", "", None),
        ("a", "b\0c", None),
        ("a", "n" * 256, None),
        ("a", "_refgenie_build/log", None),
        ("a", f"{BUILDER}/{DIGEST}.fa", LinkTarget(f"{DIGEST}.fa", "fasta", "default")),
        ("d/a", f"{BUILDER}/sub//x.fa", LinkTarget("sub/x.fa", "fasta", "default")),
        ("a", f"{BUILDER}/{DIGEST}/star_index/v2.7/SA", LinkTarget("SA", "star_index", "v2.7")),
        ("a", f"{BUILDER}/{DIGEST}", LinkTarget(DIGEST, "fasta", "default")),
        ("a", BUILDER, None),
        ("a", f"{BUILDER}/", None),
        ("a", f"{BUILDER}/../x", None),
        ("a", f"{BUILDER}/x/../../y", None),
        ("a", f"/data/{DIGEST}/fasta/../default/x", None),
        ("a", f"/data/{DIGEST}/a b/default/x", None),
        ("a", "/etc/passwd", None),
        ("a", f"/data/{DIGEST[:-1]}/fasta/default/x", None),
        ("a", "/", None),
        ("a", f"{BUILDER}/_refgenie_build/x", None),
    ],
)
def test_resolve_link(name: str, target: str, expected: LinkTarget | None) -> None:
    assert resolve_link(name, target, DIGEST) == expected


def test_python_makes_what_the_parser_reads_in_ustar_too() -> None:
    info = tarfile.TarInfo("top/" + "p" * 100 + "/name")
    info.size, info.mtime = 3, TIME
    seen = parse(make_tar([(info, b"abc")], tarfile.USTAR_FORMAT))
    assert seen.data == {"p" * 100 + "/name": b"abc"}
