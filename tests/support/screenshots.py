"""Pictures of the status page: `python -m tests.support.screenshots [FOLDER]`; into docs/images without a folder.

A small server with three genomes is served slowly and mounted; programs read, a pull runs, and another source does
not answer. Figures and times are those of this run. With a folder, all views are taken, in both colours and several
widths.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.faults.world import TIMEOUT
from tests.support.browser import chromium, prefer, resize, shoot
from tests.support.mounted import Mounted
from tests.support.shelf import make_shelf

DOCUMENTED = Path(__file__).parents[2] / "docs" / "images"
POINT = Path("/genomes")
PORT = 9417
SLOW = 1_200_000  # bytes a second and connection
LATENCY = 0.6  # seconds
LAB = """
[[source]]
name = "lab"
type = "http"
url = "http://127.0.0.1:9/genomes/"
timeout = "1s"
[[source.asset]]
key = "mm39/lab_peaks"
files = ["peaks.bed", "peaks.narrowPeak"]
"""


class Scene:
    """A daemon that is in use, and a browser that looks at it."""

    def __init__(self, mounted: Mounted, driver: Any) -> None:
        self._m = mounted
        self._driver = driver

    def shell(self, script: str) -> None:
        """Run a script with $M; what it reads does not matter."""
        self._m.shell(f"({script}) > /dev/null 2>&1 || true", timeout=100)

    def prepare(self) -> None:
        """Have something resident, pinned and read several times, and some minutes of history begun."""
        self.shell("cat $M/dm6/*/* $M/hg38/ensembl_gtf/* $M/hg38/blacklist/*")
        self._m.refgenfs("pin", "dm6/fasta", "hg38/ensembl_gtf")
        for _ in range(6):
            self.shell("for f in $M/dm6/*/*; do dd if=$f iflag=nocache count=0; cat $f; done")
            time.sleep(0.7)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have programs read and a pull run during the block."""
        scripts = (
            "for f in $M/mm39/bowtie2_index/*; do cat $f; done",
            "sleep 1; cat $M/hg38/fasta/hg38.fa",
            "cat $M/mm39/bwa_index/*",
            "stat $M/mm39/lab_peaks/peaks.bed",
            "stat $M/mm39/lab_peaks/peaks.narrowPeak",
            "while sleep 0.6; do for f in $M/dm6/*/*; do dd if=$f iflag=nocache count=0; cat $f; done; done",
        )
        with ExitStack() as stack:
            for script in scripts:
                threading.Thread(target=self._read, args=(script, stack), daemon=True).start()
            environ = {**self._m.environ, "REFGENFS_CONFIG": str(self._m.config)}
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            command = [sys.executable, "-m", "refgenfs", "pull", "--pin", "hg38/bwa_index"]
            pull = subprocess.Popen(command, env=environ, **quiet)  # type: ignore[call-overload]
            stack.callback(pull.wait, 60)
            stack.callback(pull.terminate)
            yield

    def _read(self, script: str, stack: ExitStack) -> None:
        full = ["timeout", "-s", "KILL", "60", "bash", "-c", f"M={self._m.path}; ({script}) > /dev/null 2>&1"]
        process = subprocess.Popen(full)
        stack.callback(process.wait, 70)
        stack.callback(process.terminate)

    def take(self, file: Path, address: str = "", wait: float = 1.6, height: int | None = None) -> None:
        """Take a picture of a view."""
        self._driver.get(f"http://127.0.0.1:{PORT}/{address}")
        time.sleep(wait)
        shoot(self._driver, file, height=height)

    def take_all(self, folder: Path) -> None:
        """Take pictures of all views."""
        prefer(self._driver, "dark")
        self.take(folder / "dark.png")
        prefer(self._driver, "light")
        self.take(folder / "catalog.png", "#catalog?q=hg38")
        self.take(folder / "cache.png", "#cache", 2)
        self.take(folder / "asset.png", "#asset?key=hg38/bwa_index", 3)
        resize(self._driver, 320, 700)
        self.take(folder / "narrow.png")
        self.take(folder / "narrow-catalog.png", "#catalog")
        self.take(folder / "narrow-asset.png", "#asset?key=hg38/bwa_index", 3)
        resize(self._driver, 1900, 1000)
        self.take(folder / "wide.png")
        prefer(self._driver, "dark")
        resize(self._driver, 1280, 900)
        self.take(folder / "cache-dark.png", "#cache", 2)
        self.take(folder / "asset-dark.png", "#asset?key=hg38/bwa_index", 2)
        prefer(self._driver, "light")

    def lose(self, file: Path) -> None:
        """Take a picture of the page after its daemon."""
        self._driver.get(f"http://127.0.0.1:{PORT}/")
        time.sleep(2)
        self._m.process.terminate()
        self._m.process.wait(20)
        time.sleep(4)
        shoot(self._driver, file)


def run(folder: Path | None) -> None:
    """Take the pictures."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shelf, site = stack.enter_context(make_shelf(scratch, rate=SLOW, latency=LATENCY, size="90MB"))
        for genome, share in (("hg38", 1.0), ("mm39", 0.7), ("dm6", 0.2)):
            shelf.stock(genome, share)
        if not POINT.exists():
            site.setup.mountpoint = POINT
            stack.callback(_remove, POINT)
        site.setup.extra = f'[web]\nlisten = "127.0.0.1:{PORT}"\n'
        site.setup.limits = {"retry_for": "2s", "read_deadline": "20s", "lookup_deadline": "10s"}
        site.setup.sources = site.setup.sources.replace(TIMEOUT, "5s") + LAB
        scene = Scene(stack.enter_context(site.mount()), stack.enter_context(chromium()))
        scene.prepare()
        resize(scene._driver, 1280, 900)
        with scene.busy():
            scene.take((folder or DOCUMENTED) / "status-page.png", wait=8.0, height=None if folder else 952)
            if folder is not None:
                scene.take_all(folder)
        if folder is not None:
            scene.lose(folder / "gone.png")


def _remove(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


if __name__ == "__main__":
    run(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
