"""Metrics of a daemon that is read from: they say what was read, fetched and refused, and whose it was."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from refgenfs.administration.metrics import metrics
from tests.faults.world import ALIAS, Site, make_site

pytestmark = pytest.mark.needs_fuse

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A mount with one asset by byte ranges, and its metrics on a port."""
    with make_site(tmp_path, ["one"], remotes=True) as made:
        made.port = free_port()  # type: ignore[attr-defined]
        made.setup.extra = f'[web]\nlisten = "127.0.0.1:{made.port}"\n'  # type: ignore[attr-defined]
        with made.mount():
            yield made


def scraped(site: Any, token: str = "") -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{site.port}/metrics", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return str(answer.read().decode())


def samples(text: str) -> Samples:
    """Return what a parser that is not ours makes of the text, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def taken(site: Site) -> Samples:
    return samples(site.m.call("metrics")["text"])


def test_every_metric_is_there_and_parses(site: Site) -> None:
    site.read_right("one")
    text = scraped(site)
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    for metric in metrics():
        assert families[metric.name.removesuffix("_total")] == metric.kind
    printed = site.m.refgenfs("metrics").stdout
    assert {line.split()[2] for line in printed.splitlines() if line.startswith("# TYPE")} == {
        metric.name for metric in metrics()
    }


def test_they_say_what_was_read_and_fetched(site: Site) -> None:
    site.read_right("one")
    site.drop_pages("one")
    site.read_right("one")
    status, found = site.m.status(), taken(site)
    size = sum(path.stat().st_size for path in site.world.unpacked("one").iterdir())
    origin = (("source", "origin"),)
    assert found["refgenfs_served_bytes_total", origin] == status["served"] >= 2 * size
    assert found["refgenfs_fetched_bytes_total", origin] == status["fetched"] >= size
    assert found["refgenfs_origin_requests_total", origin] == status["requests"]
    reads = {result: found["refgenfs_reads_total", (("result", result),)] for result in ("resident", "waited")}
    assert reads["resident"] / sum(reads.values()) == pytest.approx(status["hit_ratio"])
    assert reads["waited"] == found["refgenfs_read_wait_seconds_count", ()] > 0
    answered = found["refgenfs_request_duration_seconds_count", (("operation", "read"),)]
    assert answered == sum(reads.values())
    assert found["refgenfs_origin_answer_seconds_count", origin] > 0
    assert found["refgenfs_origin_up", origin] == 1
    assert found["refgenfs_cache_bytes", ()] == status["cache"]["used"]
    assert found["refgenfs_cache_quota_bytes", ()] == status["cache"]["size"]
    assert found["process_resident_memory_bytes", ()] > 10e6


def test_they_say_what_failed(site: Site) -> None:
    site.stop_origin()
    site.read_or("EIO", "ETIMEDOUT", asset="one")
    absent = site.m.path / ALIAS / "absent"
    site.m.run("bash", "-c", f"! cat {absent}")
    found = taken(site)
    failed = [value for (name, labels), value in found.items() if name == "refgenfs_origin_failures_total" and labels]
    assert sum(failed) > 0
    assert found["refgenfs_origin_retries_total", (("source", "origin"),)] > 0
    assert found["refgenfs_origin_up", (("source", "origin"),)] == 0
    kinds = {dict(labels)["kind"] for name, labels in found if name == "refgenfs_request_errors_total"}
    assert "NotInCatalog" in kinds
    assert "Unexpected" not in kinds


def test_status_has_an_account_of_each_user(site: Site) -> None:
    site.read_right("one")
    users = site.m.status()["users"]
    assert [user["uid"] for user in users] == [os.getuid()]
    size = sum(path.stat().st_size for path in site.world.unpacked("one").iterdir())
    assert users[0]["served"] == site.m.status()["served"]
    assert 0 < users[0]["fetched"] <= size
    site.drop_pages("one")
    site.read_right("one")
    again = site.m.status()["users"]
    assert again[0]["served"] > users[0]["served"]
    assert again[0]["fetched"] == users[0]["fetched"], "all of it was resident"
    assert "Users" in site.m.refgenfs("status").stdout


def test_a_token_guards_them(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    token.chmod(0o600)
    with make_site(tmp_path, ["one"], remotes=True) as made:
        made.port = free_port()  # type: ignore[attr-defined]
        made.setup.extra = f'[web]\nlisten = "0.0.0.0:{made.port}"\ntoken_file = "{token}"\n'  # type: ignore[attr-defined]
        with made.mount() as mounted:
            with pytest.raises(urllib.error.HTTPError, match="401"):
                scraped(made)
            assert "refgenfs_build_info" in scraped(made, "s3cret")
            assert "s3cret" not in mounted.log_text()
