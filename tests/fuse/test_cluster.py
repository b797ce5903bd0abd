"""Four nodes, a cache tier and an origin, each with a network of its own: what the origin sends, and who is asked
when the tier dies and comes back.

Tiers and nodes run with the files of `mount/cluster`, with addresses and paths of the test.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.cluster import (
    FILES,
    NAMES,
    NODE_ADDRESSES,
    NODES,
    SECURE,
    TIERS,
    Asked,
    Network,
    NginxTier,
    Node,
    OriginServer,
    SquidTier,
    Tier,
    egress,
    make_node,
    node_sources,
    together,
)
from tests.support.documents import Block, commands, parse
from tests.support.ecoli import ALIAS, Ecoli, EcoliServer, comparable
from tests.support.mounted import Mounted
from tests.support.sessions import fits

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_root, pytest.mark.needs_data]

KINDS: dict[str, type[NginxTier | SquidTier]] = {"nginx": NginxTier, "squid": SquidTier}
PLAIN = "plain"  # the genome of plain files
MIB = 1 << 20
SLOW = "2m"  # bytes a second and request: an index takes seconds, and can be half there
# Of what the origin sends: which bytes count as the asset's, and how many there are.
WAYS = {"archive": (ALIAS, r"/assets/archive/.*bwa_index"), "files": (PLAIN, r"/plain/bwa_index/.*\.fa\.")}


@dataclass
class Site:
    """What a test has: the network, the origin, a tier or two, and nodes that are mounted."""

    network: Network
    origin: OriginServer
    ecoli: Ecoli
    stack: ExitStack
    folder: Path
    kind: str = "nginx"

    def tier(self, number: int = 0, kind: str = "") -> Tier:
        """Start a tier."""
        tier = KINDS[kind or self.kind](self.network, number, self.origin.certificate)
        self.stack.enter_context(tier)
        return tier

    def mount(self, count: int = NODES, sources: str = "") -> list[Mounted]:
        """Mount nodes, all at one time; each with the configuration of `mount/cluster` unless others are given."""
        text = sources or node_sources(f"config-{self.kind}.toml").replace(
            '> {genome}/secure_{asset}"', f'> {{genome}}/secure_{{asset}}"\nca_file = "{self.origin.certificate}"'
        )
        nodes = [make_node(self.network, n, self.folder, text) for n in range(count)]
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(self._mount, nodes))

    def _mount(self, node: Node) -> Mounted:
        return self.stack.enter_context(node.setup.mount(prefix=node.prefix))

    def size(self, way: str) -> int:
        """Return the bytes of the asset as the origin has it."""
        if way == "archive":
            return self.ecoli.archive("bwa_index").stat().st_size
        index = self.ecoli.plain("bwa_index")
        return sum(path.stat().st_size for path in index.glob("*.fa.*"))  # bwa doesn't read the .fa itself

    def clear(self) -> None:
        """Begin the origin's count anew."""
        self.origin.clear()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture(scope="module")
def origin(
    network: Network, ecoli_archives: EcoliServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OriginServer]:
    root = tmp_path_factory.mktemp("root")
    (root / PLAIN).mkdir()
    shutil.copytree(ecoli_archives.ecoli.plain("bwa_index"), root / PLAIN / "bwa_index")
    with OriginServer(network, root, ecoli_archives.unix) as server:
        yield server


@contextmanager
def a_site(network: Network, origin: OriginServer, ecoli: Ecoli, folder: Path) -> Iterator[Site]:
    if origin.rate != "0":
        origin.restart("0")
    origin.clear()
    with ExitStack() as stack:
        yield Site(network, origin, ecoli, stack, folder)


@pytest.fixture
def site(network: Network, origin: OriginServer, ecoli: Ecoli, tmp_path: Path) -> Iterator[Site]:
    """A site for one test, with nothing running yet but the origin."""
    with a_site(network, origin, ecoli, tmp_path) as made:
        yield made


@pytest.fixture(scope="class", params=KINDS)
def four(
    request: pytest.FixtureRequest,
    network: Network,
    origin: OriginServer,
    ecoli: Ecoli,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Site, list[Mounted]]]:
    """A tier of each kind, and four nodes, cold when the first test begins."""
    with a_site(network, origin, ecoli, tmp_path_factory.mktemp("four")) as made:
        made.kind = request.param
        made.tier()
        yield made, made.mount()


@pytest.fixture(scope="class")
def single(
    network: Network, origin: OriginServer, ecoli: Ecoli, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Tier, Mounted]]:
    """One node, and nginx."""
    with a_site(network, origin, ecoli, tmp_path_factory.mktemp("single")) as made:
        tier = made.tier()
        (node,) = made.mount(1)
        yield made, tier, node


def bwa(mounted: Mounted, ecoli: Ecoli, genome: str) -> list[str]:
    return ["bwa", "mem", "-v", "1", f"{mounted.path}/{genome}/bwa_index/{ALIAS}.fa", str(ecoli.reads)]


@contextmanager
def running(commands: Sequence[Sequence[str]]) -> Iterator[Callable[[], list[str]]]:
    """Run commands at one time; yield what waits for them, and returns what each printed."""
    processes = list(together(commands))
    with ThreadPoolExecutor(len(processes)) as threads:
        outputs = [threads.submit(process.communicate) for process in processes]

        def collect() -> list[str]:
            found = [output.result() for output in outputs]
            for process, (_, errors) in zip(processes, found, strict=True):
                assert process.returncode == 0, f"exit {process.returncode}: {errors}"
            return [comparable(printed) for printed, _ in found]

        try:
            yield collect
        finally:
            for process in processes:
                process.kill()


def node_prefix(site: Site, number: int) -> list[str]:
    return site.network.inside(f"node{number}")


def refgenfs() -> list[str]:
    return [sys.executable, "-m", "refgenfs"]


def clients(asked: Sequence[Asked], containing: str) -> set[str]:
    return {one.client for one in asked if containing in one.path}


def routes(mounted: Mounted, source: str) -> dict[str, dict[str, object]]:
    """Return what `status` says of a source's proxies and servers, by URL."""
    (found,) = [one for one in mounted.status()["sources"] if one["name"] == source]
    return {route["url"]: route for route in found["routes"]}


def wait_until(true: Callable[[], bool], what: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


# --- what the origin sends ----------------------------------------------------------------------------------


class TestFourNodes:
    """They and their tier are there for all of these tests, and go before the next begin."""

    def test_four_cold_nodes_cost_the_origin_one_copy(self, four: tuple[Site, list[Mounted]]) -> None:
        """Of an archive and of plain files: the bytes of bodies that the origin sent are those of the asset, once."""
        site, nodes = four
        for way, (genome, containing) in WAYS.items():
            site.clear()
            with running([bwa(node, site.ecoli, genome) for node in nodes]) as collect:
                outputs = collect()
            assert outputs == [site.ecoli.output("bwa mem")] * NODES
            wait_until(lambda: all(not node.status()["flights"] for node in nodes), "all has come")
            asked = site.origin.log()
            ratio = egress(asked, containing) / site.size(way)
            print(f"{site.kind}, {way}: egress ÷ asset size = {ratio:.4f}")
            assert 0.99 < ratio <= 1.005, f"{way}: {ratio}"
            assert clients(asked, "") == {TIERS[0]}, "a node went past the tier"
        for node in nodes:
            assert "ERROR" not in node.log_text()

    def test_what_the_tier_has_is_read_while_the_origin_is_away(self, four: tuple[Site, list[Mounted]]) -> None:
        site, nodes = four
        name = f"{ALIAS}.fa"  # no aligner has read it
        wanted = hashlib.md5((site.ecoli.plain("bwa_index") / name).read_bytes()).hexdigest()
        try:
            for node in nodes:
                assert node.run("md5sum", f"{node.path}/{PLAIN}/bwa_index/{name}").stdout.split()[0] == wanted
                site.origin.kill()
        finally:
            site.origin.start()


# --- a tier that dies and comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_tier_is_killed_in_the_middle_and_comes_back(site: Site, kind: str) -> None:
    """Readers go on to the origin, with no error and no wrong byte; the tier is used again without a restart."""
    site.kind = kind
    site.origin.restart(SLOW)
    tier = site.tier()
    nodes = site.mount()
    genomes = [ALIAS, PLAIN, ALIAS, PLAIN]
    fetched = [node.status()["fetched"] for node in nodes]
    with running([bwa(*each) for each in zip(nodes, [site.ecoli] * NODES, genomes, strict=True)]) as collect:
        for node, before in zip(nodes, fetched, strict=True):
            wait_until(lambda n=node, b=before: n.status()["fetched"] > b + MIB, "bytes come")  # type: ignore[misc]
        assert clients(site.origin.log(), "bwa_index") == {TIERS[0]}
        tier.kill()
        outputs = collect()
    assert outputs == [site.ecoli.output("bwa mem")] * NODES
    assert clients(site.origin.log(), "bwa_index") > {TIERS[0]}, "nobody went on to the origin: it came too late"
    assert not any("ERROR" in node.log_text() for node in nodes)
    sources = {ALIAS: "genomes", PLAIN: "files"}
    known = [
        routes(node, sources[genome])[f"http://{TIERS[0]}:3128"] for node, genome in zip(nodes, genomes, strict=True)
    ]
    assert not all(route["up"] for route in known), "nobody says that the tier is away"

    tier.start()
    for node in nodes:
        ask_until_up(node, TIERS[0])
    site.origin.restart("0")
    site.clear()
    name = f"{ALIAS}.fa"
    with running([["md5sum", f"{node.path}/{PLAIN}/bwa_index/{name}"] for node in nodes]) as collect:
        sums = {printed.split()[0] for printed in collect()}
    assert sums == {hashlib.md5((site.ecoli.plain("bwa_index") / name).read_bytes()).hexdigest()}
    asked = site.origin.log()
    told = [node.status()["errors"][-3:] for node in nodes]
    assert clients(asked, name) == {TIERS[0]}, f"a node still goes past the tier: {told}"
    assert egress(asked, rf"/{name}$") == (site.ecoli.plain("bwa_index") / name).stat().st_size


def test_a_second_tier_takes_over(site: Site) -> None:
    """The first is nginx, the second Squid: while one of them is there, no node asks the origin."""
    site.origin.restart(SLOW)
    first, _second = site.tier(0, "nginx"), site.tier(1, "squid")
    nodes = site.mount(2)
    with running(
        [bwa(node, site.ecoli, genome) for node, genome in zip(nodes, (ALIAS, PLAIN), strict=True)]
    ) as collect:
        for node in nodes:
            wait_until(lambda n=node: n.status()["fetched"] > MIB, "bytes come")  # type: ignore[misc]
        first.kill()
        outputs = collect()
    assert outputs == [site.ecoli.output("bwa mem")] * 2
    assert clients(site.origin.log(), "bwa_index") == set(TIERS)


def ask_until_up(node: Mounted, tier: str) -> None:
    """Have a node ask its sources until it has found out that a tier is back."""
    proxy = f"http://{tier}:3128"

    def asked() -> bool:
        node.call("reload")
        return all(routes(node, source)[proxy]["up"] for source in ("genomes", "files"))

    wait_until(asked, f"{tier} is used again", timeout=60)


# --- one node -----------------------------------------------------------------------------------------------


class TestOneNode:
    """It and its tier are there for all of these tests."""

    def test_a_tier_stands_for_an_origin_with_tls_and_the_origin_for_the_tier(
        self,
        single: tuple[Site, Tier, Mounted],
    ) -> None:
        site, tier, node = single
        folder = f"{node.path}/{PLAIN}/secure_bwa_index"
        try:
            for client, name in ((TIERS[0], f"{ALIAS}.fa"), (NODE_ADDRESSES[0], f"{ALIAS}.fa.pac")):
                site.clear()
                printed = node.run("md5sum", f"{folder}/{name}").stdout
                assert printed.split()[0] == site.ecoli.md5("bwa_index")[name]
                assert {one.client for one in site.origin.log() if one.path.endswith(f"/{name}")} == {client}
                tier.kill()
        finally:
            tier.kill()
            tier.start()

    def test_doctor_says_which_tier_answers(self, single: tuple[Site, Tier, Mounted]) -> None:
        site, _, node = single
        doctor = ["doctor", "-c", str(node.config)]
        done = subprocess.run(
            [*node_prefix(site, 0), "timeout", "-s", "KILL", "60", *refgenfs(), *doctor],
            capture_output=True, text=True, check=False, env=node.environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = done.stdout
        assert f"ok    proxy: genomes: http://{TIERS[0]}:3128 answers" in said
        assert f"warn  proxy: genomes: http://{TIERS[1]}:3128 doesn't answer: " in said
        assert f"ok    mirror: secure: https://{SECURE}/ answers" in said
        assert f"warn  mirror: secure: http://{TIERS[1]}:3129/{SECURE}/ doesn't answer: " in said
        assert f"http://{FILES}/ answers" in said
        status = node.refgenfs("status").stdout
        assert f"genomes: proxy http://{TIERS[0]}:3128, " in status

    def test_a_second_node_on_one_cache_directory_is_refused(self, single: tuple[Site, Tier, Mounted]) -> None:
        site, _, node = single
        text = node.config.read_text().replace(str(node.path), str(site.folder / "other"))
        other = site.folder / "other.toml"
        other.write_text(text)
        done = subprocess.run(
            [*node_prefix(site, 1), "timeout", "-s", "KILL", "60", *refgenfs(), "mount", "-f", "-c", str(other)],
            capture_output=True, text=True, check=False, env=node.environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"the cache directory {node.cache} is in use by process {node.process.pid}" in done.stderr


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_s_commands_do_what_it_says(site: Site) -> None:
    """The commands of docs/cluster.md, with addresses, paths and the genome of this test."""
    page = "docs/cluster.md"
    first = site.tier()
    second = NginxTier(site.network, 1, site.origin.certificate)
    site.stack.enter_context(second)
    squid = SquidTier(site.network, 0)
    site.stack.callback(squid.close)
    squid.prepare()
    node, other = site.mount(2)
    other.run("cat", f"{other.path}/{ALIAS}/bwa_index/{ALIAS}.fa.bwt", text=False)
    paths = {
        "/genomes/": f"{node.path}/",
        "hg38": ALIAS,
        "/etc/nginx/nginx.conf": f"{first.folder}/nginx.conf",
        "/etc/squid/squid.conf": f"{squid.folder}/squid.conf",
        "/var/log/nginx": str(first.folder),
    }
    environ = {
        **node.environ,
        "REFGENFS_CONFIG": str(node.config),
        "PATH": f"{Path(sys.executable).parent}:{node.environ['PATH']}",
    }
    blocks = [step for step in parse((REPOSITORY / page).read_text(), page) if isinstance(step, Block)]
    todo = [one for block in blocks if block.test.endswith("::test_the_page_s_commands_do_what_it_says")
            for one in commands(block)]  # fmt: skip
    assert len(todo) >= 7
    for command in todo:
        text = command.text
        for here, there in paths.items():
            text = text.replace(here, there)
        if "refgenfs.log" in text:
            first.outcomes()  # it is written once a second
        done = subprocess.run(
            [*node_prefix(site, 0), "timeout", "-s", "KILL", "60", "bash", "-c", text],
            capture_output=True, text=True, check=False, env=environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        printed = done.stdout
        for name, address in NAMES.items():
            printed = printed.replace(address, name)
        assert done.returncode == 0, f"{command.place}: {text}\n{done.stdout}{done.stderr}"
        if command.shown:
            assert fits(command.shown, printed), f"{command.place}: {text}\n{printed}"
