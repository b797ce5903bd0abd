"""What `refgenfs doctor` and `config check` say of web servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refgenfs.cli import checks
from refgenfs.cli.check import Check, Machine
from refgenfs.config import Config, file_problems
from tests.support.nginx import WebsiteFactory


def configured(url: str, **keys: Any) -> Config:
    return Config.model_validate({"source": [{"name": "lab", "type": "http", "url": url, **keys}]})


def ask(url: str, **keys: Any) -> Check:
    (check,) = checks.check_sources(Machine(configured(url, **keys), {}, 4711))
    return check


ONE = [{"key": "g/fasta", "files": ["g/g.fa"]}]


def test_of_files_one_is_asked_for(website: WebsiteFactory, tmp_path: Path) -> None:
    site = website(tmp_path / "site")
    missing = ask(site.url, asset=ONE)
    assert (missing.state, "HTTP 404" in missing.found) == ("fail", True)
    assert missing.advice
    (tmp_path / "site/g").mkdir()
    (tmp_path / "site/g/g.fa").write_bytes(bytes(5_000_000))
    (tmp_path / "site/g/MD5SUMS").write_text(f"{'0' * 32}  g.fa\n")
    assert ask(site.url, asset=ONE).found.endswith(" answers")
    assert ask(site.url, layout="plain").found.endswith("with a page of a folder")
    assert ask(site.url, layout="plain", manifest="g/MD5SUMS").found.endswith("with a list of 1 files")
    assert ask(site.url, asset=[{"key": "g/x", "folder": "g"}]).state == "ok"
    site.options = "max_ranges 0;"
    site.restart()
    assert "it gives no parts of files" in ask(site.url, asset=ONE).found
    site.options = "ssi on; ssi_types *;"
    site.restart()
    assert "it tells no sizes" in ask(site.url, asset=ONE).found


def ask_as_htsget(url: str, **keys: Any) -> Check:
    config = Config.model_validate({"source": [{"name": "lab", "type": "htsget", "url": url, **keys}]})
    (check,) = checks.check_sources(Machine(config, {}, 4711))
    return check


def test_a_web_server_is_no_htsget_server(website: WebsiteFactory, tmp_path: Path) -> None:
    site = website(tmp_path / "site")
    assert ask_as_htsget(site.url).state == "warn"
    asset = [{"key": "g/x", "reads": ["a"]}]
    missing = ask_as_htsget(site.url, asset=asset)
    assert (missing.state, "/reads/a" in missing.found, "HTTP 404" in missing.found) == ("fail", True, True)
    (tmp_path / "site/reads").mkdir()
    (tmp_path / "site/reads/service-info").write_text('{"name": "anything"}')
    (tmp_path / "site/reads/a").write_text("no ticket")
    assert ask_as_htsget(site.url, asset=asset).state == "fail"
    (tmp_path / "site/reads/service-info").write_text('{"htsget": {"datatype": "reads"}}')
    assert ask_as_htsget(site.url, asset=asset).state == "ok"


def test_a_server_without_pages_of_folders(website: WebsiteFactory, tmp_path: Path) -> None:
    site = website(tmp_path / "site", options="autoindex off; index page.html;")
    (tmp_path / "site/page.html").write_text("<html><body>Welcome</body></html>")
    check = ask(site.url, layout="plain")
    assert (check.state, "no page of a folder" in check.found, "manifest" in check.advice) == ("fail", True, True)


def test_credentials_are_tried(website: WebsiteFactory, tmp_path: Path) -> None:
    (tmp_path / "site/g").mkdir(parents=True)
    (tmp_path / "site/g/g.fa").write_text("ACGT")
    passwords = tmp_path / "htpasswd"
    passwords.write_text("eve:{PLAIN}hunter2\n")
    site = website(tmp_path / "site", options=f"auth_basic lab; auth_basic_user_file {passwords};")
    assert "HTTP 401" in ask(site.url, asset=ONE).found
    password = tmp_path / "password"
    password.write_text("hunter2")
    password.chmod(0o600)
    keys = {"user": "eve", "password_file": str(password), "asset": ONE}
    assert ask(site.url, **keys).state == "ok"
    (secret,) = checks.check_tokens(Machine(configured(site.url, **keys), {}, 4711))
    assert (secret.name, secret.state) == ("password", "ok")
    password.chmod(0o644)
    (secret,) = checks.check_tokens(Machine(configured(site.url, **keys), {}, 4711))
    assert secret.state == "fail"


def test_files_that_the_configuration_names_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = configured("http://h", netrc=True, ca_file=str(tmp_path / "ca.pem"), asset=ONE)
    problems = file_problems(config)
    assert [problem.partition(":")[0] for problem in problems] == ["source.lab.netrc", "source.lab.ca_file"]
    (tmp_path / "netrc").write_text("x")
    (tmp_path / "netrc").chmod(0o604)
    config = configured("http://h", netrc_file=str(tmp_path / "netrc"), asset=ONE)
    assert file_problems(config) == [
        f"source.lab.netrc_file: {tmp_path / 'netrc'} can be read by others: chmod 600 {tmp_path / 'netrc'}"
    ]


def test_a_server_that_is_away() -> None:
    check = ask("http://127.0.0.1:1", layout="plain")
    assert (check.state, "no connection" in check.found) == ("fail", True)
