"""One run of the benchmarks: its settings, its scratch folder, its origin, and how contestants take turns."""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.contestants import GIVE_UP, Mount, Place, Start, empty
from benchmarks.data import MIB, Asset, Part, Shop, noise
from benchmarks.machine import FAILURES, drop_caches, load_pages, read_whole
from benchmarks.origin import Origin, shaped
from benchmarks.results import GIB, OURS, Contest, Curve, Item, Sample

ROOT = Path(__file__).resolve().parents[1]
BLOB = "blob.bin"
SLOW = 20.0  # seconds


@dataclass(slots=True)
class Bench:
    """What an item is given."""

    scratch: Path
    shop: Shop
    origin: Origin
    size: int
    runs: int
    quick: bool = False
    only: frozenset[str] = frozenset()  # contestants that take part; all, if empty
    commit: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def setting(self) -> str:
        """The sizes and the runs, for people."""
        return f"{self.size / MIB:,.0f} MiB, {self.runs} runs"

    def say(self, text: str) -> None:
        """Tell whoever waits."""
        sys.stderr.write(f"[{time.monotonic() - self.began:6.0f} s] {text}\n")
        sys.stderr.flush()

    def takes_part(self, name: str) -> bool:
        """Say whether a contestant was asked for."""
        return not self.only or any(wanted in name for wanted in self.only)

    def select(self, starts: Mapping[str, Start], *names: str) -> dict[str, Start]:
        """Return the contestants of these names that were asked for, ourselves first."""
        return {name: starts[name] for name in (names or starts) if name == OURS or self.takes_part(name)}

    def blob(self, size: int = 0) -> Asset:
        """Return an asset of one plain file that does not compress."""
        size = size or self.size
        return self.shop.plain(f"blob{size // MIB}", [noise(BLOB, size)])

    def plain(self, name: str, parts: Sequence[Part]) -> Asset:
        """Return an asset of plain files."""
        return self.shop.plain(name, parts)

    def folder(self, name: str) -> Path:
        """Return an empty folder for a contestant."""
        return empty(self.scratch / "run" / "".join(c if c.isalnum() else "-" for c in name))

    def place(self, asset: Asset, url: str = "") -> Place:
        """Return where an asset is: at the origin itself, without a URL."""
        return Place(url or self.origin.url, asset)

    @contextmanager
    def far(self) -> Iterator[str]:
        """Yield the URL of the origin as seen over a network of 20 ms and 20 MB/s a connection."""
        with shaped(self.origin, self.scratch) as url:
            yield url

    def cool(self, *hot: Path) -> None:
        """Have the kernel forget all pages, but have what the origin sends in memory: the network is measured."""
        drop_caches()
        load_pages(hot)

    # --- taking turns ---

    def item(self, item: Item, turns: Mapping[str, Callable[[], Sample]], *, runs: int = 0) -> Item:
        """Let all contestants take turns, A B C, B C A, and return the item with what they reached.

        Who fails once is out, and who takes longer than `SLOW` for a turn has one turn only.
        A baseline that fails leaves the item without scores, not the bench without an end.
        """
        item.when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
        item.commit, item.setting, item.quick = self.commit, item.setting or self.setting, self.quick
        item.contests += [Contest(name) for name in turns]
        slow: set[str] = set()
        for run in range(runs or self.runs):
            for contest in rotated(item.contests, run):
                if contest.failed or contest.name not in turns or contest.name in slow:
                    continue
                began = time.monotonic()
                try:
                    sample = turns[contest.name]()
                except FAILURES as exc:
                    contest.failed = str(exc) or type(exc).__name__
                    self.say(f"{item.name}: {contest.name} FAILED: {exc}")
                else:
                    contest.samples.append(sample)
                    self.say(f"{item.name} {run + 1}: {contest.name}: {_said(sample, item.unit)}")
                if time.monotonic() - began > SLOW and contest.name not in (OURS, item.baseline):
                    slow.add(contest.name)
        return item

    def curve(self, curve: Curve) -> Curve:
        """Note when and with what a curve was measured."""
        curve.when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
        curve.commit, curve.quick = self.commit, self.quick
        return curve

    def cold(
        self,
        name: str,
        start: Start,
        place: Place,
        use: Callable[[Mount], float],
        *,
        work: int,
        hot: Sequence[Path] = (),
    ) -> Sample:
        """Mount with an empty cache and no page in memory, use it, and return what `use` did, with its cost.

        work: bytes that readers got, for the CPU time a GiB. Bytes of the origin are counted when all is down.
        """
        folder = self.folder(name)
        self.cool(*hot)
        self.origin.clear()
        began = time.perf_counter()
        with start(place, folder) as mount:
            mount.began = began
            before = mount.usage()
            value = use(mount)
            after = mount.usage()
        sent = self.origin.sent()
        empty(folder)
        return Sample(value, after.memory, (after.cpu - before.cpu) / work * GIB, sent)


@contextmanager
def prepared(
    bench: Bench, starts: Mapping[str, Start], place: Place, name: str
) -> Iterator[tuple[dict[str, Mount], dict[str, str]]]:
    """Mount every contestant, have each read the file once, and yield the mounts, and why others failed."""
    mounts: dict[str, Mount] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for contestant, start in starts.items():
            try:
                mount = stack.enter_context(start(place, bench.folder(contestant)))
                fill(mount, name)
            except FAILURES as exc:
                failed[contestant] = str(exc)
                bench.say(f"{contestant} FAILED: {exc}")
            else:
                mounts[contestant] = mount
        yield mounts, failed


def fill(mount: Mount, name: str) -> None:
    """Have a contestant fetch a whole file, and let what it writes reach the disk."""
    read_whole(mount.file(name), timeout=GIVE_UP)


def rotated(contests: Sequence[Contest], run: int) -> list[Contest]:
    """Return contestants in the order of a run: each time another one is first, and who is first pays for that."""
    start = run % max(1, len(contests))
    return [*contests[start:], *contests[:start]]


def each(names: Iterable[str], measure: Callable[[str], Sample]) -> dict[str, Callable[[], Sample]]:
    """Return a turn for each contestant."""
    return {name: partial(measure, name) for name in names}


def left_out(failed: Mapping[str, str]) -> list[Contest]:
    """Return contestants that could not be prepared."""
    return [Contest(name, [], why) for name, why in failed.items()]


def commit_of(root: Path = ROOT) -> str:
    """Return the commit of the tree, with a + when something was changed; "" outside of a repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=10"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        return head.stdout.strip()
    return ""


def _said(sample: Sample, unit: str) -> str:
    parts = [f"{sample.value:,.4g} {unit}"]
    if sample.memory:
        parts.append(f"{sample.memory / MIB:.0f} MiB")
    if sample.cpu is not None:
        parts.append(f"{sample.cpu:.2f} CPU s/GiB")
    if sample.fetched is not None:
        parts.append(f"{sample.fetched / MIB:,.1f} MiB fetched")
    return ", ".join(parts)
