"""The whole mount against plain bytes, whatever happens in between.

Random steps on a real mount: files opened under any of their names, read and mapped, evicted, dropped from the
kernel's pages; the daemon restarted and killed; the origin's assets rebuilt with and without a word in the catalog,
its answers damaged, the origin gone and back. The model is the bytes of every version that the origin ever had.

What must hold: what an open file gives is all of one version. A size is that version's. An error is one that the
trouble of the moment explains, and with no trouble there is none. The cache stays within its bound. When all is
well again, everything reads, and every block that is kept has its checksum.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from refgenfs.core.errors import ControlError
from tests.faults.reading import Reading
from tests.faults.world import ALIAS, BLOCK, DIGEST, TAG, assert_log_is_clean, make_site, usual_files
from tests.support.faulty_origin import Fault

pytestmark = [
    pytest.mark.needs_fuse,
    pytest.mark.slow,
    # the origin is of this process, and when it goes away in the middle of answers it leaves sockets behind
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ASSETS = ("one", "two", "three", "four")
NAMES = ("a.big", "b.small", "c.exact")
QUOTA = 4 << 20  # the least that is allowed; the four assets are 6.9 MB
EXPLAINED = {"EIO", "ETIMEDOUT", "ESTALE", "SIGBUS"}
HANDLES = 5

EXAMPLES = int(os.environ.get("REFGENFS_MODEL_EXAMPLES", "5"))
STEPS = int(os.environ.get("REFGENFS_MODEL_STEPS", "30"))

FAULTS = st.builds(
    Fault,
    kind=st.sampled_from(
        [
            "status",
            "truncate",
            "reset",
            "stall",
            "ignore_range",
            "shift_range",
            "wrong_total",
            "flip_etag",
            "flip_bit",
        ]
    ),
    path=st.sampled_from(["/files/*", "/v3/assets/archive/*", "*"]),
    times=st.integers(1, 3),
    after=st.sampled_from([0, 7, BLOCK + 3, 900_000]),
    value=st.just(BLOCK),
)


@dataclass
class Opened:
    """A file that is open, and the versions that it may be of, by what it gave so far."""

    handle: int
    asset: str
    name: str
    versions: set[int]


class MountMachine(RuleBasedStateMachine):
    """`self.history` has the bytes of every version of every asset; the last one is the origin's present."""

    remotes = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rgfs-model-"))
        self.stack = ExitStack()
        self.history: dict[str, list[dict[str, bytes]]] = {asset: [] for asset in ASSETS}
        self.opened: list[Opened] = []
        self.well = True  # no fault, no replacement that the daemon has not heard of, since the last healing
        self.listening = True
        self.disguised = False  # the origin's answers had another version's ETag
        self.killed = False  # since the cache was verified
        self.unsaid: set[str] = set()  # assets that were replaced with no word in the catalog

    @initialize()
    def start(self) -> None:
        remotes = self.remotes
        self.site = self.stack.enter_context(make_site(self.folder, remotes=remotes, size=f"{QUOTA}B"))
        for asset in ASSETS:
            self.publish(asset)
        self.reading = Reading()
        self.stack.callback(self.reading.close)
        self.mounted = self.stack.enter_context(self.site.mount())

    # -- what is expected ---------------------------------------------------------------------------------

    def publish(self, asset: str) -> None:
        version = len(self.history[asset])
        self.history[asset].append(usual_files(f"{asset}{version}"))
        self.unsaid.discard(asset)
        self.site.world.add(asset, self.history[asset][-1], version=str(version))

    def explained(self, error: str) -> None:
        """Assert that there is a reason for an error."""
        assert error in EXPLAINED, (error, self.site.tail())
        assert not self.well, (error, self.site.tail(60))

    def check(self, file: Opened, offset: int, length: int, answer: dict[str, Any]) -> None:
        """Assert that an answer is a slice of one version, the same for all answers of one open file."""
        if answer["error"]:
            self.explained(answer["error"])
            return
        got = bytes.fromhex(answer["data"])
        history = self.history[file.asset]
        right = {v for v in file.versions if _is_slice(got, history[v][file.name], offset, length)}
        assert right, (file, offset, length, len(got), self.site.tail(60))
        if got:
            file.versions = right

    # -- readers ------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.opened) < HANDLES)
    @rule(
        asset=st.sampled_from(ASSETS),
        name=st.sampled_from(NAMES),
        genome=st.sampled_from([ALIAS, DIGEST]),
        spelling=st.sampled_from(["{0}", "{0}:{1}", "{0}/{1}"]),
    )
    def open(self, asset: str, name: str, genome: str, spelling: str) -> None:
        path = f"{self.mounted.path}/{genome}/{spelling.format(asset, TAG)}/{name}"
        answer = self.reading.ask("open", path=path)
        if answer["error"]:
            self.explained(answer["error"])
            return
        history = self.history[asset]
        fits = {v for v, files in enumerate(history) if len(files[name]) == answer["size"]}
        # With no trouble it is the present version, and not merely one that there was.
        versions = fits & {len(history) - 1} if self.well else fits
        assert versions, (path, answer, self.site.tail())
        self.opened.append(Opened(answer["handle"], asset, name, versions))

    @precondition(lambda self: self.opened)
    @rule(
        which=st.integers(0, HANDLES - 1),
        at=st.floats(0, 1),
        length=st.sampled_from([1, 100, 4096, BLOCK, 3 * BLOCK + 1, 1 << 21]),
        how=st.sampled_from(["read", "read", "map"]),
    )
    def read(self, which: int, at: float, length: int, how: str) -> None:
        file = self.opened[which % len(self.opened)]
        offset = int(at * len(self.history[file.asset][0][file.name]))
        answer = self.reading.ask(how, handle=file.handle, offset=offset, length=length)
        self.check(file, offset, length, answer)

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, HANDLES - 1), size=st.sampled_from([4096, 70_000, BLOCK]))
    def read_on(self, which: int, size: int) -> None:
        """Read a file whole and in order, as loaders do."""
        file = self.opened[which % len(self.opened)]
        offset = 0
        while offset < 12 * BLOCK:
            answer = self.reading.ask("read", handle=file.handle, offset=offset, length=size)
            self.check(file, offset, size, answer)
            if answer["error"] or not answer["data"]:
                return
            offset += len(answer["data"]) // 2

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, HANDLES - 1))
    def drop_pages(self, which: int) -> None:
        self.reading.ask("drop", handle=self.opened[which % len(self.opened)].handle)

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, HANDLES - 1))
    def close(self, which: int) -> None:
        self.reading.ask("close", handle=self.opened.pop(which % len(self.opened)).handle)

    # -- the cache ----------------------------------------------------------------------------------------

    @rule(asset=st.sampled_from(ASSETS))
    def evict(self, asset: str) -> None:
        self.call("evict", keys=[f"{DIGEST}/{asset}:{TAG}"])

    @rule()
    def clear(self) -> None:
        self.call("cache_clear")

    @rule()
    def verify(self) -> None:
        damaged = self.mounted.call("cache_verify")["damaged"]
        # Killed between the hole that an eviction punches and the ledger's word of it: found, and never served.
        assert damaged == [] or self.killed, damaged
        self.killed = False

    @rule(asset=st.sampled_from(ASSETS))
    def pull(self, asset: str) -> None:
        self.call("pull", keys=[f"{DIGEST}/{asset}:{TAG}"])

    def call(self, op: str, **arguments: Any) -> None:
        try:
            self.mounted.call(op, **arguments)
        except ControlError:
            assert not self.well, self.site.tail()

    # -- the daemon ---------------------------------------------------------------------------------------

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        for file in self.opened:
            self.reading.ask("close", handle=file.handle)
        self.opened.clear()
        if killed:
            self.mounted.kill()
            self.killed = True
        else:
            self.mounted.stop()
        assert_log_is_clean(self.mounted)
        # A dead mountpoint is the new daemon's to clear: what is left of the old one is taken down at the end.
        self.mounted = self.stack.enter_context(self.site.mount())

    # -- the origin ---------------------------------------------------------------------------------------

    @rule(asset=st.sampled_from(ASSETS))
    def rebuild(self, asset: str) -> None:
        """Another version under the same tag; the daemon has not heard of it yet."""
        self.publish(asset)
        self.well = False

    @rule(asset=st.sampled_from(ASSETS))
    def replace_quietly(self, asset: str) -> None:
        """Other bytes at the same URLs, and not a word of it in the catalog."""
        version = len(self.history[asset])
        self.history[asset].append(usual_files(f"{asset}{version}"))
        self.site.world.place(asset, self.history[asset][-1])
        self.unsaid.add(asset)
        self.well = False

    @rule(
        asset=st.sampled_from(ASSETS),
        places=st.lists(st.floats(0, 1), min_size=2, max_size=5),
        told=st.booleans(),
    )
    def replace_under_a_reader(self, asset: str, places: list[float], told: bool) -> None:
        """What chance alone seldom brings about: another version between two reads of a file that is not resident."""
        self.call("evict", keys=[f"{DIGEST}/{asset}:{TAG}"])
        path = f"{self.mounted.path}/{ALIAS}/{asset}/a.big"
        answer = self.reading.ask("open", path=path)
        if answer["error"]:
            self.explained(answer["error"])
            return
        self.reading.ask("drop", handle=answer["handle"])
        file = Opened(answer["handle"], asset, "a.big", set(range(len(self.history[asset]))))
        size = len(self.history[asset][0]["a.big"])
        for number, place in enumerate(places):
            offset = int(place * size)
            self.check(file, offset, 4096, self.reading.ask("read", handle=file.handle, offset=offset, length=4096))
            if number == 0:
                (self.rebuild if told else self.replace_quietly)(asset)
        self.reading.ask("close", handle=file.handle)

    @rule(faults=st.lists(FAULTS, min_size=1, max_size=3))
    def go_wrong(self, faults: list[Fault]) -> None:
        if self.remotes:  # nothing says what a range's bytes ought to be: docs/semantics.md, 8
            faults = [fault for fault in faults if fault.kind != "flip_bit"]
        self.site.origin.faults = faults
        self.disguised = self.disguised or any(fault.kind == "flip_etag" for fault in faults)
        self.well = False

    @precondition(lambda self: self.listening)
    @rule()
    def go_away(self) -> None:
        self.site.stop_origin()
        self.listening = self.well = False

    @precondition(lambda self: not self.well)
    @rule()
    def heal(self) -> None:
        """The origin is back and behaves, and its catalog says what it has; who reads opens anew."""
        self.site.reset()
        if not self.listening:
            self.site.start_origin()
            self.listening = True
        for asset in self.unsaid:
            self.site.world.add(asset, self.history[asset][-1], version=str(len(self.history[asset]) - 1))
        self.unsaid.clear()
        for file in self.opened:
            self.reading.ask("close", handle=file.handle)
        self.opened.clear()
        self.mounted.call("reload")
        if self.disguised:  # what the daemon learned then is refused once, and found anew by the next open
            for found in self.site.compare(*ASSETS):
                assert found["wrong"] == -1, (found, self.site.tail())
                assert found["error"] in ("", "ESTALE"), (found, self.site.tail())
            self.disguised = False
        self.well = True

    # -- always -------------------------------------------------------------------------------------------

    @invariant()
    def the_bound_holds(self) -> None:
        if hasattr(self, "mounted"):
            assert _disk_use(self.mounted.cache) <= QUOTA

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "mounted"):
                self.heal()
                self.site.read_right(*ASSETS)
                self.verify()
                assert_log_is_clean(self.mounted)
        shutil.rmtree(self.folder, ignore_errors=True)


class RangesMachine(MountMachine):
    """The same over unpacked copies, read by byte ranges."""

    remotes = True


def _is_slice(got: bytes, whole: bytes, offset: int, length: int) -> bool:
    """Say whether this is what was asked for; short only at the end, or where a later page failed."""
    right = whole[offset : offset + length]
    return got == right[: len(got)] and bool(got) == bool(right)


def _disk_use(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        total += os.stat(place).st_blocks * 512
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(f"{place}/{name}").st_blocks * 512
    return total


@pytest.mark.timeout(0)
@pytest.mark.parametrize("machine", [MountMachine, RangesMachine], ids=["archive", "ranges"])
def test_the_mount_against_plain_bytes(machine: type[MountMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=bool(os.environ.get("CI")),  # a run of CI says something of the change, not of the dice
            phases=[Phase.explicit, Phase.generate],  # a shorter story costs minutes: each is told with real waits
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
