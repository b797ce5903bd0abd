"""Who sees what of the page without a token: another user of the machine, and root."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuse.test_metrics import free_port
from tests.support.mounted import Mounted, Setup

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_root]

NOBODY = 65534
PATHS = ("/api/now", "/api/history", "/api/catalog", "/api/cache", "/api/asset?key=patients/reads", "/metrics")


@dataclass
class Page:
    """A mount with an open source and a guarded one, both read from, and its page."""

    mounted: Mounted
    port: int

    def get(self, path: str, uid: int) -> str:
        """Return what a user is answered, whatever the status."""
        script = (
            "import sys, urllib.error as e, urllib.request as u\n"
            "try: answer = u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=20)\n"
            "except e.HTTPError as error: answer = error\n"
            "print(answer.read().decode())"
        )
        url = f"http://127.0.0.1:{self.port}{path}"
        command = ["setpriv", f"--reuid={uid}", "--clear-groups", sys.executable, "-I", "-c", script, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder, port = tmp_path_factory.mktemp("access"), free_port()
    tables = []
    for name, genome, rule in (("open", "hg38", ""), ("clinic", "patients", 'allow_users = ["daemon"]\n')):
        home = folder / name
        home.mkdir()
        (home / f"{genome}.bam").write_bytes(os.urandom(200_000))
        tables.append(
            f'[[source]]\nname = "{name}"\ntype = "local"\npath = "{home}"\n{rule}cached = true\n'
            f'[[source.asset]]\nkey = "{genome}/reads"\nfiles = ["{genome}.bam"]\n'
        )
    setup = Setup(folder, sources="".join(tables), extra=f'allow_other = true\n[web]\nlisten = "127.0.0.1:{port}"\n')
    setup.mountpoint = Path(tempfile.mkdtemp(prefix="rgfs-"))  # others can't get to where pytest has its folders
    setup.mountpoint.chmod(0o755)
    with setup.mount() as mounted:
        mounted.shell("cat $M/hg38/reads/hg38.bam $M/patients/reads/patients.bam > /dev/null")
        mounted.shell("! cat $M/patients/reads/absent")
        yield Page(mounted, port)
    setup.mountpoint.rmdir()


def test_root_sees_all(page: Page) -> None:
    now = json.loads(page.get("/api/now", 0))
    assert now["whole"] is True
    assert [user["name"] for user in now["users"]] == ["root"]
    assert "patients" in page.get("/api/catalog", 0)
    assert "patients/reads" in page.get("/api/cache", 0)
    assert json.loads(page.get("/api/asset?key=patients/reads", 0))["files"][0]["name"] == "patients.bam"


def test_another_user_sees_nothing_of_guarded_sources_users_or_paths(page: Page) -> None:
    answers = {path: page.get(path, NOBODY) for path in PATHS}
    for path, text in answers.items():
        assert "patient" not in text.replace("patients/reads that you", ""), path
    now = json.loads(answers["/api/now"])
    assert (now["whole"], now["users"], now["waits"]) == (False, [], [])
    assert [source["name"] for source in now["sources"]] == ["open"]
    assert [row[1] for row in json.loads(answers["/api/catalog"])["rows"]] == ["reads"]
    assert [row[0] for row in json.loads(answers["/api/cache"])["rows"]] == ["hg38/reads"]
    assert "that you may read" in json.loads(answers["/api/asset?key=patients/reads"])["error"]
    assert json.loads(page.get("/api/asset?key=hg38/reads", NOBODY))["files"][0]["name"] == "hg38.bam"
    # a guess is answered like any other
    absent = page.get("/api/asset?key=nothing/reads", NOBODY)
    assert absent.replace("nothing", "patients") == answers["/api/asset?key=patients/reads"]


def test_who_may_read_a_guarded_source_sees_it_and_their_own_share(page: Page) -> None:
    daemon = pwd.getpwnam("daemon").pw_uid
    read = f"cat {page.mounted.path}/patients/reads/patients.bam > /dev/null"
    page.mounted.run("setpriv", f"--reuid={daemon}", "--clear-groups", "sh", "-c", read)
    now = json.loads(page.get("/api/now", daemon))
    assert (now["whole"], [user["name"] for user in now["users"]]) == (False, ["daemon"])
    assert [source["name"] for source in now["sources"]] == ["open", "clinic"]
    assert "patients" in page.get("/api/catalog", daemon)
    assert "patients/reads" in page.get("/api/cache", daemon)
