"""`python -m benchmarks.tier`: four cold nodes read one file at once, past a cache tier and by it.

Nodes, tiers and origin are in network namespaces of this machine (`tests/support/cluster.py`); what goes out of the
origin's is bounded, as a site's line to the world is. Prints the table of docs/cluster.md. As root.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from refgenfs.core.units import parse_size
from tests.support.cluster import FILES, NODES, TIERS, Network, NginxTier, OriginServer, SquidTier, make_node
from tests.support.mounted import Mounted

DATA = "g/fasta/g.fa"
SOURCE = """[[source]]
name = "files"
type = "http"
url = "http://{files}/"
proxy = {proxies}
timeout = "60s"
layout = "plain"
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What one setting gave: seconds until the last node had all, bytes that the origin sent."""

    name: str
    seconds: float
    egress: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tier", description=__doc__)
    parser.add_argument("--size", type=parse_size, default="64MiB", help="of the file (default: %(default)s)")
    parser.add_argument("--rate", default="200mbit", help="of the origin's line, as tc has it (default: %(default)s)")
    options = parser.parse_args(arguments)
    size = parse_size(options.size)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refgenfs-tier-")))
        scratch.chmod(0o755)
        root = scratch / "root"
        (root / DATA).parent.mkdir(parents=True)
        (root / DATA).write_bytes(random.Random(0).randbytes(size))
        network = stack.enter_context(Network())
        origin = stack.enter_context(OriginServer(network, root, scratch / "none.sock"))
        _bound(network, options.rate)
        rows = list(_measure(network, origin, scratch, size))
    _print(rows, size)
    return 0


def _bound(network: Network, rate: str) -> None:
    line = ["tc", "-n", network.name("origin"), "qdisc", "add", "dev", "eth0", "root", "tbf"]
    subprocess.run([*line, "rate", rate, "burst", "256kb", "latency", "50ms"], check=True, timeout=30)


def _measure(network: Network, origin: OriginServer, scratch: Path, size: int) -> list[Row]:
    rows = [_read(network, origin, scratch / "direct", "straight from the origin", "direct", size)]
    for kind in (NginxTier, SquidTier):
        with kind(network, 0) as tier:
            for state in ("empty", "filled"):
                name = f"by {'nginx' if tier.kind == 'nginx' else 'Squid'}, {state}"
                folder = scratch / f"{tier.kind}-{state}"
                rows.append(_read(network, origin, folder, name, f"http://{TIERS[0]}:3128", size))
    return rows


def _read(network: Network, origin: OriginServer, folder: Path, name: str, proxy: str, size: int) -> Row:
    """Have all nodes, with empty caches, read the file at once."""
    sources = SOURCE.format(files=FILES, proxies=f'["{proxy}"]')
    with ExitStack() as stack:
        nodes = [make_node(network, n, folder, sources) for n in range(NODES)]
        mounted = [stack.enter_context(node.setup.mount(prefix=node.prefix)) for node in nodes]
        origin.clear()

        def read(node: Mounted) -> int:
            return int(node.shell(f'cat "$M/{DATA}" | wc -c', timeout=300))

        began = time.monotonic()
        with ThreadPoolExecutor(NODES) as threads:
            read_bytes = list(threads.map(read, mounted))
        seconds = time.monotonic() - began
        assert read_bytes == [size] * NODES
        return Row(name, seconds, sum(one.bytes for one in origin.log() if DATA in one.path and one.method == "GET"))


def _print(rows: Sequence[Row], size: int) -> None:
    print("| four cold nodes | seconds | times the speed | the origin sent ÷ size |")
    print("|---|---|---|---|")
    for row in rows:
        speed = rows[0].seconds / row.seconds
        print(f"| {row.name} | {row.seconds:.1f} | {speed:.1f} | {row.egress / size:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
