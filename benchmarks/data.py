"""What is served and read: made from a seed, once, in the scratch folder, laid out as nginx serves it.

```
ROOT/genomes.json                                       the catalog
ROOT/files/<digest>/<asset>__default/<file>             plain files
ROOT/files/<digest>/<asset>__default.tgz                archives
ROOT/files/<digest>/asset_dir_contents_<asset>__default.json
```
"""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import isal_zlib

MIB = 1 << 20
GIB = 1 << 30
DIGEST = "0123456789abcdef" * 3  # as long as refgenie's
ALIAS = "bench"
LINE = 60  # bases of a FASTA line
LINES = 17_476  # of a piece: about 1 MiB
CONTIG = 64  # pieces of a sequence: about 64 MB
_BASES = bytes(b"ACGT"[byte & 3] for byte in range(256))


@dataclass(frozen=True, slots=True)
class Asset:
    """A published asset. `size`: of all its files; `archive`: its .tgz, if it has one."""

    name: str
    files: tuple[str, ...]
    size: int
    folder: Path
    archive: Path | None = None

    @property
    def key(self) -> str:
        """Its registry path."""
        return f"{ALIAS}/{self.name}"

    def plain(self, name: str = "") -> Path:
        """Return a plain file on the disk, the first one without a name."""
        return self.folder / (name or self.files[0])


@dataclass(frozen=True, slots=True)
class Part:
    """A file to be made: its name, its size in bytes, and its bytes in pieces."""

    name: str
    size: int
    pieces: Iterable[bytes]


class Shop:
    """The folder that is served; each asset in it is made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "files" / DIGEST
        self.home.mkdir(parents=True, exist_ok=True)

    def plain(self, name: str, parts: Sequence[Part]) -> Asset:
        """Publish plain files, made unless files of these sizes are there."""
        folder = self.home / f"{name}__default"
        folder.mkdir(exist_ok=True)
        for part in parts:
            path = folder / part.name
            if not path.exists() or path.stat().st_size != part.size:
                with path.open("wb") as file:
                    file.writelines(part.pieces)
        asset = Asset(name, tuple(part.name for part in parts), sum(part.size for part in parts), folder)
        self._publish(asset, "")
        return asset

    def archive(self, name: str, parts: Sequence[Part], *, level: int = 1) -> Asset:
        """Publish an archive, and nothing beside it, made unless one of these files is there."""
        archive = self.home / f"{name}__default.tgz"
        stamp = self.home / f"{name}.made.json"
        wanted = {"level": level, "parts": [[part.name, part.size] for part in parts]}
        made = json.loads(stamp.read_text()) if stamp.exists() and archive.exists() else {}
        if made.get("of") != wanted:
            made = {"of": wanted, "md5": pack(archive, parts, level)}
            stamp.write_text(json.dumps(made))
        names, size = tuple(part.name for part in parts), sum(part.size for part in parts)
        asset = Asset(name, names, size, self.home / f"{name}__default", archive)
        self._publish(asset, str(made["md5"]), archive.stat().st_size)
        return asset

    def remove(self, asset: Asset) -> None:
        """Give back the room of an archive; it is made again when it is asked for."""
        if asset.archive is not None:
            asset.archive.unlink(missing_ok=True)

    def _publish(self, asset: Asset, md5: str, archive_size: int = GIB) -> None:
        catalog = self.root / "genomes.json"
        genomes = json.loads(catalog.read_text()) if catalog.exists() else {}
        genome = genomes.setdefault(DIGEST, {"genome_description": "large", "aliases": [ALIAS], "assets": {}})
        genome["assets"][asset.name] = described(asset.name, asset.files[0], asset.size, md5, archive_size)
        catalog.write_text(json.dumps(genomes))
        listing = self.home / f"asset_dir_contents_{asset.name}__default.json"
        listing.write_text(json.dumps(asset.files))


def described(asset: str, first: str, size: int, archive_md5: str, archive_size: int = GIB) -> dict[str, Any]:
    """Return what a catalog says of an asset with one tag; sizes as refgenieserver writes them, in units of 1024."""
    digest = hashlib.md5(f"{asset}/{size}".encode(), usedforsecurity=False).hexdigest()
    attrs = {
        "asset_path": asset, "asset_digest": digest, "archive_digest": archive_md5,
        "asset_size": f"{size}B", "archive_size": f"{archive_size / MIB:.2f} MB",
        "seek_keys": {asset: first, "dir": "."}, "asset_parents": [], "asset_children": [],
    }  # fmt: skip
    return {"asset_description": "", "default_tag": "default", "tags": {"default": attrs}}


# --- bytes --------------------------------------------------------------------------------------------------


def noise(name: str, size: int, seed: int = 1) -> Part:
    """Return a file that does not compress."""

    def pieces() -> Iterator[bytes]:
        dice = random.Random(seed)
        for start in range(0, size, MIB):
            yield dice.randbytes(min(MIB, size - start))

    return Part(name, size, pieces())


def file_of(path: Path, name: str = "") -> Part:
    """Return a file that is on the disk."""

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            while data := file.read(MIB):
                yield data

    return Part(name or path.name, path.stat().st_size, pieces())


def fasta(stem: str, size: int, seed: int = 2) -> tuple[Part, Part]:
    """Return a FASTA of about `size` bytes, and its index as samtools makes it."""
    count = max(1, round(size / (LINES * (LINE + 1))))
    header = b">chr%d\n"
    index, offset = "", 0
    for number, first in enumerate(range(0, count, CONTIG), start=1):
        lines = LINES * min(CONTIG, count - first)
        offset += len(header % number)
        index += f"chr{number}\t{lines * LINE}\t{offset}\t{LINE}\t{LINE + 1}\n"
        offset += lines * (LINE + 1)

    def pieces() -> Iterator[bytes]:
        dice = random.Random(seed)
        for piece in range(count):
            if piece % CONTIG == 0:
                yield header % (piece // CONTIG + 1)
            yield _lines(dice.randbytes(LINES * LINE).translate(_BASES))

    return Part(f"{stem}.fa", offset, pieces()), Part(f"{stem}.fa.fai", len(index), [index.encode()])


def _lines(bases: bytes) -> bytes:
    """Return bases with a line's end after each `LINE`; which base is where does not matter."""
    wide = LINE + 1
    text = bytearray(LINES * wide)
    for column in range(LINE):
        text[column::wide] = bases[column * LINES : (column + 1) * LINES]
    text[LINE::wide] = b"\n" * LINES
    return bytes(text)


def pack(path: Path, parts: Iterable[Part], level: int = 1) -> str:
    """Write a .tgz as `refgenieserver archive` lays it out, quickly; return its MD5."""
    gzip = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file:

        def put(data: bytes) -> None:
            file.write(data)
            md5.update(data)

        folder = tarfile.TarInfo("default")
        folder.type = tarfile.DIRTYPE
        put(gzip.compress(folder.tobuf(tarfile.GNU_FORMAT)))
        for part in parts:
            info = tarfile.TarInfo(f"default/{part.name}")
            info.size, info.mtime = part.size, 1_600_000_000
            put(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
            for piece in part.pieces:
                put(gzip.compress(piece))
            put(gzip.compress(bytes(-part.size % 512)))
        put(gzip.compress(bytes(1024)) + gzip.flush())
    return md5.hexdigest()
