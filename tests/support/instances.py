"""Instances of the unit on a booted machine: a configuration of them, and the file of the demo's that they serve."""

from __future__ import annotations

from refgenfs.demo.origin import Origin

UNIT = "refgenfs@lab"
FASTA = "/genomes/demo/fasta/demo.fa"
CONFIG = """
[mount]
point = "{point}"
[cache]
size = "{size}"
min_free = "0%"
[limits]
retry_for = "2s"
[[source]]
name = "{name}"
type = "refgenie"
url = "{url}"
"""


def config(origin: Origin, *, point: str = "/genomes", size: str = "100MB", name: str = "demo") -> str:
    """Return a configuration that serves the demo's genome."""
    return CONFIG.format(point=point, size=size, name=name, url=origin.url)
