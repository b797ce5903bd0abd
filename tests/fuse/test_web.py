"""Plain files of real web servers, read through the mount by the programs people use."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.reading import Reading
from tests.support.mounted import Mounted, Setup
from tests.support.nginx import WebsiteFactory
from tests.support.tinyproxy import Tinyproxy

pytestmark = [pytest.mark.needs_fuse]

MIB = 1 << 20
NO_RANGES = "max_ranges 0;"
NO_SIZE = "ssi on; ssi_types *;"  # what may be changed on its way has no length, no version and no parts


def data(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def fill(root: Path, **sizes: int) -> dict[str, bytes]:
    """Write files (their names with '__' for '/' and '_' for '.'), and return what is in them."""
    files = {name.replace("__", "/").replace("_", "."): data(name, size) for name, size in sizes.items()}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def source(url: str, *lines: str, assets: str = "") -> str:
    wanted = assets or 'layout = "plain"'
    return "\n".join(
        ('[[source]]\nname = "lab"\ntype = "http"\ntimeout = "5s"', f'url = "{url}/"', *lines, wanted, "")
    )


def asset(*files: str, key: str = "g/fasta", **more: str) -> str:
    ways = "".join(f'{name} = "{value}"\n' for name, value in more.items())
    named = f"files = {list(files)!r}\n" if files else ""
    return f'[[source.asset]]\nkey = "{key}"\n{named}{ways}'


def assets(mounted: Mounted, genome: str) -> list[str]:
    """Return the assets of a genome, each by its default tag."""
    return [name for name in mounted.run("ls", str(mounted.path / genome)).stdout.split() if ":" not in name]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def md5_of(mounted: Mounted, path: str) -> str:
    return str(mounted.run("md5sum", str(mounted.path / path)).stdout).split()[0]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def forget_pages(mounted: Mounted, path: str) -> None:
    """Have the kernel forget what it has of a file."""
    code = "import os,sys; fd = os.open(sys.argv[1], 0); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)"
    mounted.run(sys.executable, "-c", code, str(mounted.path / path))


# ---- what there is


def test_a_lab_s_web_server_in_five_lines(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=300_000, g__fasta__g_fa_fai=50, g__bwa__index__g_bwt=70_000)
    fill(tmp_path / "site", h__fasta__h_fa=10)
    site = website(tmp_path / "site")
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        assert mounted.shell("cd $M; find g h -type f | grep -v : | sort").split() == [
            "g/bwa/index/g.bwt",
            "g/fasta/g.fa",
            "g/fasta/g.fa.fai",
            "h/fasta/h.fa",
        ]
        for name, content in files.items():
            assert md5_of(mounted, name) == md5(content)
        assert mounted.refgenfs("seek", "g/fasta").stdout.strip().endswith("/g/fasta/default/g.fa")
        assert mounted.refgenfs("seek", "g/fasta.fai").stdout.strip().endswith("/g/fasta/default/g.fa.fai")
        info = mounted.refgenfs("info", "g/fasta").stdout
        assert "g.fa.fai" in info
        assert site.bytes_sent("/g/fasta/g.fa") < 300_000 + 50 + 100


def test_names_that_pages_escape(website: WebsiteFactory, tmp_path: Path) -> None:
    names = ["a b.fa", "100%.fa", "x#1.fa", "q?x=1.fa", "<&>.fa", "é.fa", "a:b.fa", "a+b.fa", "a'b\"c.fa"]
    folder = tmp_path / "site" / "g" / "fasta"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(name)
    site = website(tmp_path / "site")
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        assert sorted(os.listdir(mounted.path / "g/fasta")) == sorted(names)
        for name in names:
            assert mounted.run("cat", str(mounted.path / "g/fasta" / name)).stdout == name


def test_pages_of_python_s_server(tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=3 * MIB, g__fasta__sub__x_fa=5)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(command, cwd=tmp_path / "site", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split()[5].decode()
        with Setup(tmp_path, source(f"http://127.0.0.1:{port}")).mount() as mounted:
            for name, content in files.items():  # it gives no parts
                assert md5_of(mounted, name) == md5(content)
            assert mounted.status()["fetched"] < 3 * MIB + 20_000
    finally:
        server.terminate()
        server.communicate(timeout=10)


def test_a_folder_and_a_list_as_an_asset(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", x__one_fa=1000, x__one_fa_fai=20, x__deep__two_fa=30, x__README=10)
    sums = "".join(f"{md5(content)}  ./{name.removeprefix('x/')}\n" for name, content in files.items())
    (tmp_path / "site/x/MD5SUMS").write_text(sums + f"{'0' * 32}  ../../etc/passwd\n")
    (tmp_path / "site/sizes.txt").write_text("x/one.fa\t1000\nx/README\t11\n")
    site = website(tmp_path / "site")
    assets = (
        asset(key="g/folder", folder="x")
        + asset(key="g/list", manifest="x/MD5SUMS")
        + asset(key="g/sized", manifest="sizes.txt")
        + '[[source.asset]]\nkey = "g/some"\nfolder = "x"\nonly = ["*.fa*"]\n'
    )
    with Setup(tmp_path, source(site.url, assets=assets)).mount() as mounted:
        listed = mounted.shell("cd $M; find g -type f | grep -v : | sort").split()
        assert "g/folder/MD5SUMS" in listed
        assert [name for name in listed if name.startswith("g/list/")] == [
            "g/list/README", "g/list/deep/two.fa", "g/list/one.fa", "g/list/one.fa.fai",
        ]  # fmt: skip
        assert [name for name in listed if name.startswith("g/some/")] == [
            "g/some/deep/two.fa", "g/some/one.fa", "g/some/one.fa.fai",
        ]  # fmt: skip
        assert md5_of(mounted, "g/list/deep/two.fa") == md5(files["x/deep/two.fa"])
        assert md5_of(mounted, "g/sized/x/one.fa") == md5(files["x/one.fa"])
        wrong = mounted.run("cat", str(mounted.path / "g/sized/x/README"), check=False)
        assert "Input/output error" in wrong.stderr
        assert "has 10 bytes at its host, and 11 by the list" in mounted.log_text()


def test_what_is_there_is_refreshed_and_a_failure_changes_nothing(website: WebsiteFactory, tmp_path: Path) -> None:
    fill(tmp_path / "site", g__fasta__g_fa=100)
    site = website(tmp_path / "site")
    setup = Setup(tmp_path, source(site.url), limits={"retry_for": "1s"})
    with setup.mount() as mounted:
        assert assets(mounted, "g") == ["fasta"]
        fill(tmp_path / "site", g__gff__g_gff=100)
        mounted.call("reload")
        wait_until(lambda: assets(mounted, "g") == ["fasta", "gff"], "the new asset")
        site.stop()
        mounted.call("reload")
        assert assets(mounted, "g") == ["fasta", "gff"]
        assert not mounted.status()["sources"][0]["healthy"]
    with setup.mount() as mounted:
        assert assets(mounted, "g") == ["fasta", "gff"]
        site.start()
        mounted.call("reload")
        assert mounted.status()["sources"][0]["healthy"]


# ---- servers that give no parts, and no sizes


@pytest.mark.parametrize("told", [True, False])
def test_a_server_without_ranges_sends_a_file_once(website: WebsiteFactory, tmp_path: Path, told: bool) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa_gz=24 * MIB)
    lie = "" if told else "add_header Accept-Ranges bytes;"
    site = website(tmp_path / "site", options=f"{NO_RANGES} {lie}")
    content = files["g/fasta/g.fa.gz"]
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        script = """
            f=$M/g/fasta/g.fa.gz
            for i in 1 2 3; do md5sum < $f & done
            tail -c 1000 $f | md5sum
            dd if=$f bs=4096 skip=3000 count=1 status=none | md5sum
            wait
        """
        printed = mounted.shell(script).split()[::2]
        assert sorted(printed) == sorted(
            [md5(content)] * 3 + [md5(content[-1000:]), md5(content[3000 * 4096 : 3001 * 4096])]
        )
        whole = [
            one for one in site.log() if one.method == "GET" and one.path.endswith(".gz") and one.bytes >= 24 * MIB
        ]
        assert len(whole) == 1
        allowed = 24 * MIB if told else 24 * MIB + 8 * MIB  # what a server had sent when its answer was not wanted
        assert site.bytes_sent(".fa.gz") <= allowed
        assert mounted.status()["fetched"] < 24 * MIB + 100_000
        site.clear()
        forget_pages(mounted, "g/fasta/g.fa.gz")
        assert md5_of(mounted, "g/fasta/g.fa.gz") == md5(content)
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa.gz") == md5(content)
        assert site.bytes_sent(".fa.gz") == 0


def test_a_file_larger_than_the_cache_without_ranges(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa_gz=40 * MIB)
    site = website(tmp_path / "site", options=NO_RANGES)
    with Setup(tmp_path, source(site.url), size="16MiB").mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa.gz") == md5(files["g/fasta/g.fa.gz"])
        assert site.bytes_sent(".fa.gz") == 40 * MIB
        assert mounted.status()["cache"]["used"] <= 16 * MIB
        pulled = mounted.refgenfs("pull", "g/fasta", check=False)
        assert "no room in the cache" in pulled.stderr


def test_a_server_without_ranges_that_breaks_off(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa_gz=16 * MIB)
    site = website(tmp_path / "site", options=f"{NO_RANGES} limit_rate 4m;")
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        reader = subprocess.Popen(
            ["timeout", "-s", "KILL", "90", "md5sum", str(mounted.path / "g/fasta/g.fa.gz")], stdout=subprocess.PIPE
        )
        wait_until(lambda: mounted.status()["fetched"] > 4 * MIB, "some of it")
        site.options = NO_RANGES
        site.restart()
        out, _ = reader.communicate()
        assert out.split()[0].decode() == md5(files["g/fasta/g.fa.gz"])


def test_a_pull_without_ranges(website: WebsiteFactory, tmp_path: Path) -> None:
    fill(tmp_path / "site", g__fasta__g_fa_gz=16 * MIB, g__fasta__g_fa_fai=70_000)
    site = website(tmp_path / "site", options=NO_RANGES)
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        mounted.refgenfs("pull", "g/fasta", "--pin")
        assert site.bytes_sent("/g/fasta/g.fa") == 16 * MIB + 70_000
        xattrs = mounted.shell("getfattr -d $M/g/fasta/g.fa.gz")
        assert 'resident="100"' in xattrs


def test_a_size_that_is_not_told_is_never_wrong(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa_gz=6 * MIB + 123, g__fasta__other_fa=5 * MIB)
    (tmp_path / "site/g/fasta/none.fa").touch()
    site = website(tmp_path / "site", options=NO_SIZE)
    setup = Setup(tmp_path, source(site.url))
    with setup.mount() as mounted:
        name = mounted.path / "g/fasta/g.fa.gz"
        assert mounted.run("stat", "-c", "%s", str(name)).stdout.strip() == str(6 * MIB + 123)
        first = mounted.run("stat", "-c", "%Y", str(name)).stdout
        assert md5_of(mounted, "g/fasta/g.fa.gz") == md5(files["g/fasta/g.fa.gz"])
        fetches = [one for one in site.log() if one.method == "GET" and one.bytes >= 6 * MIB]
        assert len(fetches) == 1
        assert not [one for one in site.log() if "other" in one.path and one.bytes >= 5 * MIB]  # nobody asked for it
        assert mounted.run("stat", "-c", "%s", str(name.with_name("none.fa"))).stdout.strip() == "0"
        site.clear()
        assert mounted.run("stat", "-c", "%Y", str(name)).stdout == first
    with setup.mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa.gz") == md5(files["g/fasta/g.fa.gz"])
        assert max(one.bytes for one in [*site.log()] if "g.fa.gz" in one.path) < MIB
    (tmp_path / "small").mkdir()
    with Setup(tmp_path / "small", source(site.url), size="4MiB").mount() as mounted:
        assert mounted.run("stat", "-c", "%s", str(mounted.path / "g/fasta/g.fa.gz")).stdout.strip() == str(
            6 * MIB + 123
        )
        assert md5_of(mounted, "g/fasta/g.fa.gz") == md5(files["g/fasta/g.fa.gz"])


# ---- servers that ask, deny, slow down, send elsewhere


def htpasswd(path: Path, user: str, password: str) -> Path:
    path.write_text(f"{user}:{{PLAIN}}{password}\n")
    path.chmod(0o644)
    return path


def secret(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("way", ["file", "url", "netrc"])
def test_basic_authentication_and_nothing_of_it_shown(website: WebsiteFactory, tmp_path: Path, way: str) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=3 * MIB)
    passwords = htpasswd(tmp_path / "htpasswd", "eve", "hunter2")
    site = website(tmp_path / "site", options=f"auth_basic lab; auth_basic_user_file {passwords};")
    url, lines = site.url, []
    if way == "file":
        lines = ['user = "eve"', f'password_file = "{secret(tmp_path / "password", "hunter2")}"']
    elif way == "netrc":
        lines = [f'netrc_file = "{secret(tmp_path / "netrc", "machine 127.0.0.1 login eve password hunter2")}"']
    else:
        url = url.replace("http://", "http://eve:hunter2@")
    log = '[log]\nlevel = "debug"\n'
    setup = Setup(tmp_path, source(url, *lines), extra=log, limits={"retry_for": "1s"})
    with setup.mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["g/fasta/g.fa"])
        htpasswd(passwords, "eve", "changed")
        fill(tmp_path / "site", g__fasta__new_fa=5)
        mounted.call("reload")
        shown = mounted.refgenfs("status", "--json").stdout + mounted.refgenfs("status").stdout
        shown += mounted.refgenfs("config", "show", "--json").stdout + mounted.refgenfs("config", "show").stdout
        shown += mounted.refgenfs("info", "g/fasta", "--json").stdout + mounted.shell("getfattr -d $M/g/fasta/*")
        done = mounted.refgenfs("doctor", check=False)
        shown += done.stdout + done.stderr + mounted.log_text()
        assert "HTTP 401" in shown
        for text in ("hunter2", "ZXZlOmh1bnRlcjI"):
            assert text not in shown


def test_without_a_password_it_is_no_permission(website: WebsiteFactory, tmp_path: Path) -> None:
    fill(tmp_path / "site", g_fa=3 * MIB, denied_fa=10)
    passwords = htpasswd(tmp_path / "htpasswd", "eve", "hunter2")
    site = website(
        tmp_path / "site",
        f"location = /g.fa {{ auth_basic lab; auth_basic_user_file {passwords}; }}"
        " location = /denied.fa { return 403; }",
    )
    with Setup(tmp_path, source(site.url, assets=asset("g.fa", "denied.fa", "gone.fa"))).mount() as mounted:
        for name, error in (
            ("g.fa", "Permission denied"),
            ("denied.fa", "Permission denied"),
            ("gone.fa", "Input/output"),
        ):
            done = mounted.run("cat", str(mounted.path / "g/fasta" / name), check=False)
            assert error in done.stderr
        fill(tmp_path / "site", gone_fa=10)  # it is asked again, sooner or later
        assert mounted.run("ls", str(mounted.path / "g/fasta")).stdout.split() == ["denied.fa", "g.fa", "gone.fa"]


@pytest.mark.parametrize("status", [503, 429])
def test_a_server_that_limits_requests_and_rates(website: WebsiteFactory, tmp_path: Path, status: int) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=12 * MIB)
    site = website(
        tmp_path / "site",
        settings=f"limit_req_zone $binary_remote_addr zone=few:1m rate=2r/s; limit_req_status {status};",
        options="limit_req zone=few burst=1 nodelay; limit_rate 8m;",
    )
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["g/fasta/g.fa"])
        assert any(one.status == status for one in site.log())
        assert site.bytes_sent("g.fa") < 13 * MIB


def test_a_server_that_packs_what_it_sends(website: WebsiteFactory, tmp_path: Path) -> None:
    text = b"ACGT" * MIB
    (tmp_path / "site/g/fasta").mkdir(parents=True)
    (tmp_path / "site/g/fasta/g.fa").write_bytes(text)
    site = website(tmp_path / "site", options="gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;")
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(text)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_redirects(website: WebsiteFactory, tmp_path: Path, elsewhere: bool) -> None:
    files = fill(tmp_path / "site", store__g_fa=5 * MIB)
    other = website(tmp_path / "site")
    base = other.url if elsewhere else ""
    site = website(tmp_path / "site", f"location /files/ {{ rewrite ^/files/(.*)$ {base}/store/$1 redirect; }}")
    with Setup(tmp_path, source(site.url, assets=asset("files/g.fa"))).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["store/g.fa"])
        assert (other if elsewhere else site).bytes_sent("/store/g.fa") == 5 * MIB


def test_a_server_that_refuses_head(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=5 * MIB)
    site = website(tmp_path / "site", options="if ($request_method = HEAD) { return 405; }")
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["g/fasta/g.fa"])
        assert site.bytes_sent("/g/fasta/g.fa") < 5 * MIB + 10


def test_through_a_proxy(
    website: WebsiteFactory, tmp_path: Path, tinyproxy: Tinyproxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=3 * MIB)
    site = website(tmp_path / "site")
    monkeypatch.setenv("http_proxy", tinyproxy.url)
    with Setup(tmp_path, source(site.url)).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["g/fasta/g.fa"])
    assert tinyproxy.requests("/g/fasta/g.fa")
    (tmp_path / "direct").mkdir()
    with Setup(tmp_path / "direct", source(site.url, 'proxy = "none"')).mount() as mounted:
        before = len(tinyproxy.requests("/g/fasta/g.fa"))
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["g/fasta/g.fa"])
    assert len(tinyproxy.requests("/g/fasta/g.fa")) == before


# ---- mirrors


def test_a_mirror_stands_in_and_the_server_comes_back(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=24 * MIB, g__fasta__late_fa=2 * MIB, g__fasta__last_fa=2 * MIB)
    first = website(tmp_path / "site", options="limit_rate 2m;")
    second = website(tmp_path / "site")
    config = source(first.url, f'mirrors = ["{second.url}"]')
    with Setup(tmp_path, config).mount() as mounted:
        path = str(mounted.path / "g/fasta/g.fa")
        reader = subprocess.Popen(["timeout", "-s", "KILL", "90", "md5sum", path], stdout=subprocess.PIPE)
        wait_until(lambda: mounted.status()["fetched"] > 2 * MIB, "some of it")
        assert second.log() == []
        first.stop()
        out, _ = reader.communicate()
        assert out.split()[0].decode() == md5(files["g/fasta/g.fa"])
        assert second.bytes_sent("g.fa") > 8 * MIB
        assert md5_of(mounted, "g/fasta/late.fa") == md5(files["g/fasta/late.fa"])
        first.options = ""
        first.start()
        first.clear()

        def asked_again() -> bool:
            forget_pages(mounted, "g/fasta/last.fa")
            mounted.refgenfs("evict", "g/fasta")
            return (
                md5_of(mounted, "g/fasta/last.fa") == md5(files["g/fasta/last.fa"]) and first.bytes_sent("last") > 0
            )

        wait_until(asked_again, "the first server to be asked again", 90)


def test_a_mirror_with_another_version_is_left_out(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=12 * MIB)
    (tmp_path / "other/g/fasta").mkdir(parents=True)
    (tmp_path / "other/g/fasta/g.fa").write_bytes(data("another", 12 * MIB))
    os.utime(tmp_path / "other/g/fasta/g.fa", (1_600_000_000, 1_600_000_000))  # nginx makes its ETag of it
    first, second = website(tmp_path / "site"), website(tmp_path / "other")
    config = source(first.url, f'mirrors = ["{second.url}"]', 'revalidate = "1s"')
    with Setup(tmp_path, config, limits={"retry_for": "1s"}).mount() as mounted:
        right = files["g/fasta/g.fa"]
        script = "head -c 4096 $M/g/fasta/g.fa | md5sum"
        assert mounted.shell(script).split()[0] == md5(right[:4096])
        first.stop()
        time.sleep(1.5)
        assert mounted.shell(script).split()[0] == md5(right[:4096])
        tail = mounted.run("tail", "-c", "1000", str(mounted.path / "g/fasta/g.fa"), check=False, text=False)
        assert b"error" in tail.stderr
        assert tail.stdout in (b"", right[-1000:])
        first.start()
        wait_until(
            lambda: "error" not in mounted.run("md5sum", str(mounted.path / "g/fasta/g.fa"), check=False).stderr, "it"
        )
        assert md5_of(mounted, "g/fasta/g.fa") == md5(right)


# ---- what is replaced


def replace_file(path: Path, content: bytes, age: int) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(content)
    stamp = path.stat().st_mtime + age
    os.utime(fresh, (stamp, stamp))
    fresh.rename(path)


@pytest.mark.parametrize(
    "options", ["", "etag off;", f"{NO_RANGES}", "etag off; if_modified_since off; max_ranges 0;"]
)
def test_a_replaced_file_is_never_mixed(website: WebsiteFactory, tmp_path: Path, options: str) -> None:
    size = 16 * MIB
    files = fill(tmp_path / "site", g__fasta__g_fa=size)
    old, new = files["g/fasta/g.fa"], data("new", size)
    site = website(tmp_path / "site", options=options)
    reading = Reading()
    try:
        with Setup(tmp_path, source(site.url, 'revalidate = "1s"'), size="8MiB").mount() as mounted:
            path = str(mounted.path / "g/fasta/g.fa")
            handle = reading.ask("open", path=path)["handle"]
            first = reading.ask("read", handle=handle, offset=0, length=4096)
            assert bytes.fromhex(first["data"]) == old[:4096]
            replace_file(tmp_path / "site/g/fasta/g.fa", new, 10)
            time.sleep(1.5)
            for offset in range(0, size, MIB):
                answer = reading.ask("read", handle=handle, offset=offset, length=4096)
                assert answer["error"] == "ESTALE" or bytes.fromhex(answer["data"]) == old[offset : offset + 4096]
            wait_until(lambda: md5_of(mounted, "g/fasta/g.fa") == md5(new), "the new version")
            reading.ask("close", handle=handle)
    finally:
        reading.close()


# ---- five programs at once


def test_five_programs_at_once_cost_the_file_once(website: WebsiteFactory, tmp_path: Path, data_dir: Path) -> None:
    folder = tmp_path / "site/ecoli/fasta"
    folder.mkdir(parents=True)
    plain = data_dir / "data/genomes/GCF_000005845.2_ASM584v2_genomic.fna.gz"
    packed = folder / "ecoli.fa.gz"
    with packed.open("wb") as sink:  # samtools wants blocks that can be entered
        subprocess.run(["bash", "-c", f"set -o pipefail; zcat {plain} | bgzip -c"], stdout=sink, check=True)
    size = packed.stat().st_size
    site = website(tmp_path / "site")
    setup = Setup(tmp_path, source(site.url))
    wanted = subprocess.run(["bash", "-c", f"zcat {plain} | wc"], capture_output=True, text=True, check=True).stdout

    region = "NC_000913.3:4641600-4641652"
    count = "import pysam, sys; print(sum(len(r.sequence) for r in pysam.FastxFile(sys.argv[1])))"

    def job(mounted: Mounted, out: Path) -> None:
        out.mkdir()
        script = f"""
            f=$M/ecoli/fasta/ecoli.fa.gz
            samtools faidx --fai-idx {out}/fai --gzi-idx {out}/gzi $f {region} > {out}/region & p1=$!
            bwa index -p {out}/index $f 2> /dev/null & p2=$!
            zcat $f | wc > {out}/wc & p3=$!
            {sys.executable} -c "{count}" $f > {out}/pysam & p4=$!
            cp $f {out}/copy & p5=$!
            for p in $p1 $p2 $p3 $p4 $p5; do wait $p; done
        """
        mounted.shell(script, timeout=100)
        assert (out / "wc").read_text().split() == wanted.split()
        assert (out / "pysam").read_text().strip() == "4641652"
        assert (out / "copy").read_bytes() == packed.read_bytes()
        assert (out / "region").read_text().startswith(f">{region}\n")
        assert (out / "index.bwt").stat().st_size > 4_000_000
        shutil.rmtree(out)

    with setup.mount() as mounted:
        job(mounted, tmp_path / "one")
        assert site.bytes_sent("ecoli.fa.gz") == size
        site.clear()
        job(mounted, tmp_path / "two")
        assert site.bytes_sent("ecoli.fa.gz") == 0
        status = mounted.status()
        assert status["served"] >= size
        assert status["sources"][0]["fetched"] >= size
    site.clear()
    with setup.mount() as mounted:
        job(mounted, tmp_path / "three")
        assert site.bytes_sent("ecoli.fa.gz") == 0
        (row,) = mounted.status()["sources"]
        assert row["served"] >= size
        assert row["fetched"] < 10_000  # pages of folders
        assert row["saved"] == row["served"] - row["fetched"]
        assert "saved" in mounted.refgenfs("status").stdout


def test_a_certificate_of_the_lab_s_own(website: WebsiteFactory, tmp_path: Path) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=3 * MIB)
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lab"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    tls = f"""
        server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
                  root {tmp_path / "site"}; autoindex on; }}"""
    website(tmp_path / "site", settings=tls)
    url = f"https://127.0.0.1:{port}"
    with Setup(tmp_path, source(url, f'ca_file = "{certificate}"')).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["g/fasta/g.fa"])
    (tmp_path / "without").mkdir()
    with Setup(tmp_path / "without", source(url)).mount() as mounted:
        assert "self-signed" in mounted.status()["sources"][0]["error"]


def test_a_netrc_of_the_daemon_s_user(
    website: WebsiteFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fill(tmp_path / "site", g__fasta__g_fa=MIB)
    passwords = htpasswd(tmp_path / "htpasswd", "eve", "hunter2")
    site = website(tmp_path / "site", options=f"auth_basic lab; auth_basic_user_file {passwords};")
    monkeypatch.setenv("HOME", str(tmp_path))
    secret(tmp_path / ".netrc", "default login eve password hunter2\n")
    with Setup(tmp_path, source(site.url, "netrc = true")).mount() as mounted:
        assert md5_of(mounted, "g/fasta/g.fa") == md5(files["g/fasta/g.fa"])
