"""`metrics`: what a running daemon counts, and what it does."""

from __future__ import annotations

import os
import sys

from refgenfs.cli.connection import choose
from refgenfs.cli.options import ConfigFile, Mountpoint


def metrics(mountpoint: Mountpoint = None, config: ConfigFile = None) -> None:
    """Print the metrics as Prometheus reads them, also where the daemon serves none."""
    sys.stdout.write(choose(mountpoint, config, os.environ, os.geteuid()).call("metrics")["text"])
