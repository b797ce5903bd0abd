"""The process that makes indices: fed through a pipe, bounded, and gone when it should be."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from refgenfs.core.errors import CannotBeMade, GenerateFailed, StaleContent
from refgenfs.made.process import Bounds, Feed, Product, TooSlow, run_worker

ROOMY = Bounds(60.0, 1 << 30, 64 << 20)
FASTA = b">one about it\nACGTNacgt\nACG\n>two\nTTTT\n"
Take = Callable[[bytes | memoryview], Awaitable[None]]


def feeding(*parts: bytes) -> Feed:
    async def feed(take: Take) -> None:
        for part in parts:
            await take(part)

    return feed


async def make(maker: str, feed: Feed, bounds: Bounds = ROOMY, count: int = 1) -> list[bytes]:
    products = [Product(maker) for _ in range(count)]
    try:
        await run_worker(maker, products, feed, bounds)
        return [product.read(0, product.size) for product in products]
    finally:
        for product in products:
            product.close()


def children() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


def samtools(*words: str) -> bytes:
    return subprocess.run(["samtools", *words], input=FASTA, capture_output=True, check=True, timeout=60).stdout


def look(process: str, file: str) -> str:
    return Path(f"/proc/{process}/{file}").read_text()


def descriptors(process: str) -> list[str]:
    return [os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()]


async def test_an_index_is_what_samtools_makes(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(FASTA)
    samtools("faidx", str(path))
    assert await make("faidx", feeding(FASTA[:7], FASTA[7:])) == [path.with_suffix(".fa.fai").read_bytes()]
    assert await make("dict", feeding(FASTA)) == [samtools("dict", "-")]


@pytest.mark.parametrize(
    ("maker", "data", "says"),
    [
        ("faidx", b"no fasta at all\n", "Format error"),
        ("faidx", b">a\nACGT\nAC\nACGT\n", "Format error"),
        ("faidx", b"", "truncated"),
        ("bai", b"no bam at all\n" * 1000, "Failed to open|no reference|refuses it|[E::]"),
        ("bed.tbi", b"a\t1\t2\n", "refuses it"),
    ],
)
async def test_data_that_is_refused(maker: str, data: bytes, says: str) -> None:
    with pytest.raises(CannotBeMade, match=says):
        await make(maker, feeding(data))


async def test_data_that_can_t_be_read_leaves_no_index() -> None:
    """The worker must not take the end of a pipe for the end of the data."""
    before = children()

    async def feed(take: Take) -> None:
        await take(FASTA)
        raise StaleContent("replaced")

    product = Product("faidx")
    with pytest.raises(StaleContent):
        await run_worker("faidx", [product], feed, ROOMY)
    assert product.size == 0
    product.close()
    assert children() == before


async def test_one_that_takes_too_long_is_killed() -> None:
    before = children()

    async def feed(take: Take) -> None:
        await take(FASTA)
        await trio.sleep_forever()

    with pytest.raises(TooSlow):
        await make("faidx", feed, Bounds(0.5, 1 << 30, 1 << 20))
    assert children() == before


async def test_who_is_cancelled_leaves_no_process() -> None:
    before = children()
    started = trio.Event()

    async def feed(take: Take) -> None:
        await take(FASTA)
        started.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make, "faidx", feed)
        await started.wait()
        nursery.cancel_scope.cancel()
    assert children() == before


async def test_its_memory_is_bounded() -> None:
    """A header that says it is huge gets the worker nowhere."""
    endless = b">" + b"x" * (1 << 20)

    async def feed(take: Take) -> None:
        for _ in range(400):
            await take(endless)

    with pytest.raises((GenerateFailed, CannotBeMade)):
        await make("dict", feed, Bounds(60.0, 128 << 20, 1 << 20))


async def test_what_it_makes_is_bounded() -> None:
    many = b"".join(b">sequence%d\nA\n" % number for number in range(20_000))
    with pytest.raises((GenerateFailed, CannotBeMade)):
        await make("faidx", feeding(many), Bounds(60.0, 1 << 30, 100_000))


async def test_nothing_of_the_daemon_s_is_open_in_it(tmp_path: Path) -> None:
    """It has its pipes and what it makes, and no secret in its environment."""
    secret = tmp_path / "secret"
    secret.write_text("token")
    held = os.open(secret, os.O_RDONLY)
    os.set_inheritable(held, True)
    seen: list[str] = []

    others = children()  # of servers that other tests have running

    async def feed(take: Take) -> None:
        (child,) = children() - others
        await take(FASTA)
        while "pysam" not in look(child, "maps"):  # noqa: ASYNC110 - it is under way then
            await trio.sleep(0.01)
        seen.extend(descriptors(child))
        assert "HOME=" not in look(child, "environ")
        assert os.readlink(f"/proc/{child}/cwd") == "/"

    try:
        await make("faidx", feed)
    finally:
        os.close(held)
    assert str(secret) not in seen
    assert sum("memfd:refgenfs" in one for one in seen) == 1


def test_a_product_is_read_in_parts() -> None:
    product = Product("x")
    os.write(product.fd, struct.pack("<8I", *range(8)))
    assert product.read(4, 12) == struct.pack("<2I", 1, 2)
    assert product.read(28, 1000) == struct.pack("<I", 7)
    product.close()
    product.close()
