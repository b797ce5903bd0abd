"""`python -m benchmarks [ITEM …]`: measure, store the results, and write docs/performance.md from them."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import report
from benchmarks.bench import ROOT, Bench, commit_of
from benchmarks.contestants import PEERS, versions
from benchmarks.data import MIB, Shop
from benchmarks.items import CURVES, GROUPS, ITEMS
from benchmarks.machine import FAILURES, Failed, describe, may_drop
from benchmarks.origin import serving
from benchmarks.results import GIB, OURS, Results
from refgenfs.core.units import parse_size

STORED = ROOT / "benchmarks" / "results.json"
DOCUMENT = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
SCRATCH = Path("/var/tmp/refgenfs-bench")  # noqa: S108 - made below with mode 0700
QUICK = 64 * MIB


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; return 0, or 1 where refgenfs itself failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        wanted = _select(options.items)
    except KeyError as exc:
        parser.error(
            f"no item or group {exc.args[0]!r}; there are: {', '.join([*GROUPS, 'growth', *ITEMS, *CURVES])}"
        )
    if options.list:
        for name in wanted:
            print(name)
        return 0
    stored = options.json or (None if options.quick else STORED)
    if options.render:
        _render(Results.from_json((stored or STORED).read_text()), stored or STORED)
        return 0
    results = _load(stored)
    results.command = _command(
        sys.argv[1:] if arguments is None else arguments, results.command, whole=not options.items
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts and servers go, too
    try:
        failed = _measure(options, wanted, results, stored)
    except Failed as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 1
    for name, line in report.summary_lines(results).items():
        if name in wanted:
            print(f"{name}: {line}")
    for name, curve in results.curves.items():
        if name in wanted:
            print(f"{name}: {'; '.join(curve.defects()) or 'nothing grows faster than the work'}")
    if stored == STORED:
        _render(results, STORED)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure refgenfs beside plain files, curl and its peers.",
        epilog=f"Items: {', '.join(ITEMS)}. Curves (group growth): {', '.join(CURVES)}. "
        f"Groups: {', '.join(GROUPS)}. Scratch: $REFGENFS_BENCH_DIR, or {SCRATCH}.",
    )
    parser.add_argument("items", nargs="*", metavar="ITEM", help="items or groups; all without any")
    parser.add_argument("--quick", action="store_true", help="small files and one run: to see that it works")
    parser.add_argument("--runs", type=int, default=0, help="runs of each contestant (default 3; quick 1)")
    parser.add_argument("--size", type=parse_size, default=0, help="of the large files (default 1GiB; quick 64MiB)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="these peers only; repeatable")
    parser.add_argument("--json", type=Path, help=f"keep results here instead of {STORED.relative_to(ROOT)}")
    parser.add_argument(
        "--render", action="store_true", help="measure nothing: write the document and its figures anew"
    )
    parser.add_argument("--list", action="store_true", help="name what would be measured")
    return parser


def _command(arguments: Sequence[str], before: str, *, whole: bool) -> str:
    """Return the commands that the stored results come from: the last whole run, and what was measured since."""
    words = shlex.join(arguments)
    command = f'make bench BENCH_ARGS="{words}"' if words else "make bench"
    earlier = [] if whole or not before else [each for each in before.split("; ") if each != command]
    return "; ".join([*earlier, command])


def _select(names: Sequence[str]) -> list[str]:
    """Return items and curves in their order. Raises KeyError for a name that is neither, nor a group."""
    groups = {**{group: list(items) for group, items in GROUPS.items()}, "growth": list(CURVES)}
    every = [*ITEMS, *CURVES]
    chosen: set[str] = set()
    for name in names:
        if name not in groups and name not in every:
            raise KeyError(name)
        chosen.update(groups.get(name, [name]))
    return [name for name in every if name in chosen or not names]


def _load(stored: Path | None) -> Results:
    if stored is not None and stored.exists():
        return Results.from_json(stored.read_text())
    return Results()


def _measure(options: argparse.Namespace, wanted: Sequence[str], results: Results, stored: Path | None) -> bool:
    """Measure; results are stored after each item. Return whether refgenfs failed in one. Raises Failed."""
    size = options.size or (QUICK if options.quick else GIB)
    scratch = Path(os.environ.get("REFGENFS_BENCH_DIR") or SCRATCH)
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_room(scratch, size)
    if not may_drop():
        print("not root: pages are dropped file by file, readahead stays at the kernel's 128 KiB", file=sys.stderr)
    results.machine = describe(scratch) | versions()
    failed = False
    with ExitStack() as stack:
        stack.enter_context(_alone(scratch))
        shop = Shop(scratch / "origin")
        origin = stack.enter_context(serving(shop.root, scratch / "nginx"))
        stack.callback(shutil.rmtree, scratch / "run", ignore_errors=True)
        runs = options.runs or (1 if options.quick else 3)
        bench = Bench(scratch, shop, origin, size, runs, options.quick, frozenset(options.only), commit_of())
        for name in wanted:
            bench.say(f"-- {name}")
            try:
                if name in ITEMS:
                    item = ITEMS[name](bench)
                    results.items[name] = item
                    ours = item.contest(OURS)
                    failed |= ours is None or bool(ours.failed)
                else:
                    results.curves[name] = CURVES[name](bench)
            except FAILURES as exc:
                bench.say(f"{name} FAILED: {exc}")
                failed = True
            if stored is not None:
                _store(results, stored)
    return failed


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Keep a second run out of the scratch folder. Raises Failed when there is a first one."""
    with (scratch / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise Failed(f"another run works in {scratch}; REFGENFS_BENCH_DIR names another folder") from exc
        yield


def _store(results: Results, path: Path) -> None:
    """Write the results, in the order of the items: a run of some of them changes theirs only."""
    results.items = {name: results.items[name] for name in ITEMS if name in results.items}
    results.curves = {name: results.curves[name] for name in CURVES if name in results.curves}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(results.to_json())
    unfinished.replace(path)


def _check_room(scratch: Path, size: int) -> None:
    """Raise Failed unless the scratch folder has room: the files served, and what contestants keep of them."""
    needed = 9 * size + GIB
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise Failed(
            f"{scratch} has {free / GIB:.1f} GiB free, and about {needed / GIB:.1f} GiB are needed; "
            "REFGENFS_BENCH_DIR names another folder, --size a smaller file"
        )


def _render(results: Results, stored: Path) -> None:
    DOCUMENT.write_text(report.render(DOCUMENT.read_text(), results))
    python = PEERS / "python"
    if not python.exists():
        print("no figures: matplotlib comes with `bash scripts/bootstrap.sh bench`", file=sys.stderr)
        return
    command = [str(python), "-m", "benchmarks.plot", str(stored), str(IMAGES)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
