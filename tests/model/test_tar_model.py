"""The tar parser against the standard library's, on random trees, formats, cuts and damage."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from refgenfs.core.errors import ArchiveError
from tests.support.tars import make_tar, parse

FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
LETTERS = st.characters(codec="utf-8", exclude_characters="/\0")
PLAIN = st.text("abcdefghij._-", min_size=1, max_size=12)
WILD = st.text(LETTERS, min_size=1, max_size=12)
LONG = st.integers(60, 240).map(lambda length: "n" * length)

Entry = tuple[str, str, bytes, int]  # kind, name, data or target, mtime


def is_component(name: str) -> bool:
    return name not in (".", "..") and not name.startswith("_refgenie_build")


@st.composite
def trees(draw: st.DrawFn, form: int) -> list[Entry]:
    """Give members that a format can hold: folders, files in them, symbolic and hard links."""
    part = (PLAIN if form == tarfile.USTAR_FORMAT else PLAIN | WILD | LONG).filter(is_component)
    folders = ["", *draw(st.lists(part, max_size=3, unique=True))]
    entries: list[Entry] = [("dir", folder, b"", 0) for folder in folders[1:]]
    taken, files = set(folders), list[str]()
    for base in draw(st.lists(part, max_size=6)):
        folder = draw(st.sampled_from(folders))
        name = f"{folder}/{base}" if folder else base
        if name in taken:
            continue
        taken.add(name)
        mtime = draw(st.integers(0, 2**33 - 1))
        kind = draw(st.sampled_from(["file", "file", "file", "link", "hardlink"]))
        if kind == "hardlink" and files:
            entries.append((kind, name, draw(st.sampled_from(files)).encode(), mtime))
        elif kind == "link":
            entries.append((kind, name, draw(part).encode(), mtime))
        else:
            size = draw(st.sampled_from([0, 1, 511, 512, 513, 3000]) | st.integers(0, 2000))
            entries.append(("file", name, draw(st.binary(min_size=1, max_size=8)) * size, mtime))
            files.append(name)
    return entries


TYPES = {"dir": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}


def build(entries: list[Entry], form: int) -> bytes:
    """Return an archive of these members below a top folder."""
    made = [(tarfile.TarInfo("top"), b"")]
    made[0][0].type = tarfile.DIRTYPE
    for kind, name, body, mtime in entries:
        info = tarfile.TarInfo(f"top/{name}")
        info.type, info.mtime = TYPES[kind], mtime
        if kind == "file":
            info.size = len(body)
        elif kind == "link":
            info.linkname = body.decode()
        elif kind == "hardlink":
            info.linkname = "top/" + body.decode()
        made.append((info, body if kind == "file" else b""))
    return make_tar(made, form)


archives = FORMATS.flatmap(lambda form: trees(form).map(lambda entries: (entries, form)))


@settings(max_examples=200, deadline=None)
@given(archives, st.data())
def test_the_parser_says_what_the_standard_library_says(made: tuple[list[Entry], int], data: st.DataObject) -> None:
    entries, form = made
    archive = build(entries, form)
    cuts = data.draw(st.lists(st.integers(0, len(archive)), max_size=20))
    seen = parse(archive, cuts)
    assert seen.ended
    assert seen.complete == len(entries)
    with tarfile.open(fileobj=io.BytesIO(archive)) as model:
        expected = model.getmembers()[1:]
        assert ["top/" + member.name for member in seen.members] == [info.name for info in expected]
        for member, info in zip(seen.members, expected, strict=True):
            assert TYPES[member.kind] == info.type
            assert member.mtime == info.mtime
            if info.isreg():
                file = model.extractfile(info)
                assert file is not None
                assert seen.data[member.name] == file.read()
                assert (member.size, member.offset) == (info.size, info.offset_data)
            if info.issym():
                assert member.target == info.linkname
            if info.islnk():
                assert f"top/{member.target}" == info.linkname


@settings(max_examples=50, deadline=None)
@given(archives)
def test_every_byte_can_come_alone(made: tuple[list[Entry], int]) -> None:
    archive = build(*made).rstrip(b"\0") + bytes(512)
    archive += bytes(-len(archive) % 512 + 1024)
    if len(archive) < 30_000:
        assert parse(archive, range(1, len(archive))) == parse(archive)


@settings(max_examples=200, deadline=None)
@given(archives, st.data())
def test_a_truncated_archive_never_ends(made: tuple[list[Entry], int], data: st.DataObject) -> None:
    archive = build(*made)
    whole = parse(archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as model:
        model.getmembers()
        mark = model.offset + 1024  # tarfile stops at the first zero block
    stop = data.draw(st.integers(0, mark - 1))
    seen = parse(archive[:stop], data.draw(st.lists(st.integers(0, stop), max_size=5)))
    assert not seen.ended
    assert whole.members[: len(seen.members)] == seen.members
    for name, body in seen.data.items():
        assert whole.data[name].startswith(body)


@settings(max_examples=300, deadline=None)
@given(archives, st.data())
def test_a_damaged_header_is_never_believed(made: tuple[list[Entry], int], data: st.DataObject) -> None:
    archive = build(*made)
    with tarfile.open(fileobj=io.BytesIO(archive)) as model:
        # A header block ends where its data begins; the two zero blocks of the end count as well.
        starts = [info.offset_data - 512 for info in model.getmembers()] + [model.offset, model.offset + 512]
    at = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 511))
    damaged = bytearray(archive)
    damaged[at] ^= data.draw(st.integers(1, 255))
    whole = parse(archive)
    try:
        seen = parse(bytes(damaged))
    except ArchiveError:
        return
    assert seen == whole  # a checksum's own spaces, say


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000), archives, st.data())
def test_rubbish_gives_errors_of_ours_only(
    rubbish: bytes, made: tuple[list[Entry], int], data: st.DataObject
) -> None:
    archive = bytearray(build(*made))
    at = data.draw(st.integers(0, len(archive)))
    archive[at : at + len(rubbish)] = rubbish
    for hostile in (rubbish, bytes(archive)):
        with suppress(ArchiveError):
            parse(hostile)
