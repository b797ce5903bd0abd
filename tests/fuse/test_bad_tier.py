"""A cache tier that answers rubbish, between a mount and its origin: every byte is the origin's all the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.mounted import Setup
from tests.support.nginx import Website, WebsiteFactory

pytestmark = [pytest.mark.needs_fuse]

NEW = random.Random(1).randbytes(5_000_000)
OLD = random.Random(2).randbytes(5_000_000)
PAGE = 'default_type text/html; return 200 "<html><body>Please log in</body></html>";'


def source(origin: Website, *proxies: str) -> str:
    return (
        f'[[source]]\nname = "lab"\ntype = "http"\nurl = "{origin.url}/"\ntimeout = "2s"\nrevalidate = "1h"\n'
        f"proxy = {[*proxies, 'direct']!r}\n"
        '[[source.asset]]\nkey = "g/fasta"\nfiles = ["g.fa", "h.fa"]\n'
    )


@pytest.fixture
def origin(website: WebsiteFactory, tmp_path: Path) -> Website:
    site = website(tmp_path / "site")
    for name in ("g.fa", "h.fa"):
        (site.root / name).write_bytes(NEW)
    return site


@pytest.mark.parametrize(
    "options",
    ["return 502;", "return 504;", "return 403;", "return 404;", "return 444;", PAGE],
    ids=["502", "504", "403", "404 for everything", "closed at once", "a page of HTML"],
)
def test_a_tier_of_rubbish_from_the_start(
    website: WebsiteFactory, origin: Website, tmp_path: Path, options: str
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    tier = website(tmp_path / "tier", options=options)
    with Setup(folder, source(origin, tier.url)).mount() as mounted:
        assert mounted.run("cat", f"{mounted.path}/g/fasta/g.fa", text=False).stdout == NEW
        assert "ERROR" not in mounted.log_text()
    assert origin.bytes_sent("g.fa") >= len(NEW)


def test_a_tier_that_falls_back_to_an_old_version(website: WebsiteFactory, origin: Website, tmp_path: Path) -> None:
    """What the mount knows of a file it keeps to: not a byte of another version is taken, nor ESTALE given."""
    folder = tmp_path / "m"
    folder.mkdir()
    tier = website(tmp_path / "tier")
    for name in ("g.fa", "h.fa"):
        (tier.root / name).hardlink_to(origin.root / name)
    with Setup(folder, source(origin, tier.url)).mount() as mounted:
        first, second = (f"{mounted.path}/g/fasta/{name}" for name in ("g.fa", "h.fa"))
        assert mounted.run("cat", first, text=False).stdout == NEW
        mounted.run("stat", second)
        assert origin.bytes_sent() == 0, "the tier was not used"
        for name in ("g.fa", "h.fa"):
            (tier.root / name).unlink()
            (tier.root / name).write_bytes(OLD)
        assert mounted.run("cat", second, text=False).stdout == NEW
        assert mounted.run("cat", first, text=False).stdout == NEW
    assert origin.bytes_sent("h.fa") == len(NEW)
