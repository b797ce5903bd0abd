"""What every test shares: where the test data is, what a test needs of the machine, and no skips in CI."""

from __future__ import annotations

import os
import shutil
import signal
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.support.mounted import SHORT_FOLDERS

REPOSITORY = Path(__file__).resolve().parent.parent

# What a lane begins late keeps the others waiting at the end.
LONGEST_FIRST = ("system", "install", "recipes", "fuse", "faults", "model", "integration", "unit")
# Folders that one lane takes as a whole: their tests share what there is one of at a time, such as a booted machine.
SHARED = ("tests/system/",)

NO_DATA = "needs the shared test data: set REFGENFS_TEST_DATA"
NO_ROOT = "needs root"
NO_FUSE = "needs a /dev/fuse that can be opened, and fusermount3"

pytest_plugins = (
    "tests.support.refgenieserver",
    "tests.support.nginx",
    "tests.support.ecoli",
    "tests.support.s3",
    "tests.support.tinyproxy",
    "tests.support.bare_root",
    "tests.support.booted",
)

# How long an example takes says how busy the machine is.
settings.register_profile("refgenfs", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refgenfs")

_skips = pytest.StashKey[list[str]]()


def find_data_dir() -> Path | None:
    """Return the folder of the shared test data, or None where there is none."""
    named = os.environ.get("REFGENFS_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    return folder if (folder / "data").is_dir() else None


@cache
def fuse_is_usable() -> bool:
    """Return whether this process could mount a FUSE file system."""
    if shutil.which("fusermount3") is None:
        return False
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the shared test data; a test that asks for it is skipped where there is none."""
    folder = find_data_dir()
    if folder is None:
        pytest.skip(NO_DATA)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background with SIGINT ignored, and programs that are tested would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):  # the tests' servers are on this machine
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    config.stash[_skips] = []
    config.pluginmanager.register(_SkipWatch(config.stash[_skips]))


class Lanes(LoadFileScheduling):
    """A lane takes file after file, and some folders as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((folder for folder in SHARED if file.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Have lanes take their tests so."""
    return Lanes(config, log)


def _by_length(item: pytest.Item) -> int:
    """Return where a test's folder stands among those whose files take longest; the order is else what it was."""
    folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else 0


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name binary values by their argument: lanes must agree on the names of tests, and gzip has the time in it."""
    return argname if isinstance(val, bytes) and not val.isascii() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run; of tests in lanes, have the long ones come first."""
    if hasattr(config, "workerinput"):
        items.sort(key=_by_length)
    absent = {
        "needs_data": (find_data_dir() is None, NO_DATA),
        "needs_root": (os.geteuid() != 0, NO_ROOT),
        "needs_fuse": (not fuse_is_usable(), NO_FUSE),
    }
    for item in items:
        for marker, (is_absent, reason) in absent.items():
            if is_absent and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


class _SkipWatch:
    """Keeps the names of the tests and test files that were skipped, and why."""

    def __init__(self, skips: list[str]) -> None:
        self._skips = skips

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # A test that is expected to fail, and does, is reported as skipped too.
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self._skips.append(f"{report.nodeid}: {str(reason).removeprefix('Skipped: ')}")


def _skips_that_fail(config: pytest.Config) -> list[str]:
    in_ci = os.environ.get("CI", "").lower() in ("1", "true", "yes")
    return config.stash[_skips] if in_ci else []


def pytest_unconfigure() -> None:
    """Remove the folders that have no owner."""
    for folder in SHORT_FOLDERS:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test fails the run: a test that does not run there never runs."""
    if session.exitstatus == pytest.ExitCode.OK and _skips_that_fail(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips = _skips_that_fail(config)
    if skips:
        terminalreporter.section("skipped, which fails in CI", red=True, bold=True)
        for line in skips:
            terminalreporter.line(line)
