"""A cluster on one machine: nodes, cache tiers and an origin, each in a network namespace of its own.

All hang on one bridge, which is in a namespace too: nothing of this machine's own network is touched, and what the
namespaces have in it goes with them. Tiers run with the very files of `mount/cluster`, but for addresses and paths.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.mounted import Setup

RECIPES = Path(__file__).resolve().parents[2] / "mount" / "cluster"
START_TIMEOUT = 20.0  # seconds
SETTLE = 0.15  # a request is logged a moment after the client has its last byte
NODES = 4

# Who has which address; the origin has one for each of its names.
GENOMES, FILES, SECURE = "10.77.0.2", "10.77.0.3", "10.77.0.4"
TIERS = ("10.77.0.11", "10.77.0.12")
NODE_ADDRESSES = tuple(f"10.77.0.{101 + n}" for n in range(NODES))
NAMES = {
    "genomes.example.org": GENOMES,
    "files.example.org": FILES,
    "secure.example.org": SECURE,
    "cache1.example.org": TIERS[0],
    "cache2.example.org": TIERS[1],
}


class Network:
    """The namespaces. A context manager: on leaving they are gone, and so is what they had."""

    def __init__(self) -> None:
        self._prefix = f"rgfs{os.getpid()}-"
        self._made: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._make("hub")
            _ip("-n", self.name("hub"), "link", "add", "br0", "type", "bridge")
            _ip("-n", self.name("hub"), "link", "set", "br0", "up")
            self._join("origin", GENOMES, FILES, SECURE)
            for n, address in enumerate(TIERS):
                self._join(f"tier{n}", address)
            for n, address in enumerate(NODE_ADDRESSES):
                self._join(f"node{n}", address)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def name(self, place: str) -> str:
        """Return the namespace of a place."""
        return self._prefix + place

    def inside(self, place: str) -> list[str]:
        """Return what runs a command there: only its network is another one."""
        return ["nsenter", f"--net=/run/netns/{self.name(place)}"]

    def close(self) -> None:
        """Remove every namespace, with its interfaces."""
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], check=False, capture_output=True, timeout=30)

    def _make(self, place: str) -> None:
        _ip("netns", "add", self.name(place))
        self._made.append(self.name(place))
        _ip("-n", self.name(place), "link", "set", "lo", "up")

    def _join(self, place: str, *addresses: str) -> None:
        self._make(place)
        hub, here, port = self.name("hub"), self.name(place), f"to-{place}"
        _ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", here)
        _ip("-n", hub, "link", "set", port, "master", "br0", "up")
        for address in addresses:
            _ip("-n", here, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", here, "link", "set", "eth0", "up")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr}")


# --- servers ------------------------------------------------------------------------------------------------


class Server(ABC):
    """A program that listens in a namespace. `kill` and `start` keep its files."""

    def __init__(self, network: Network, place: str, address: str, port: int, user: str) -> None:
        self.address = address
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix=f"{place}-"))
        self.folder.chmod(0o755)
        found = pwd.getpwnam(user)
        os.chown(self.folder, found.pw_uid, found.pw_gid)
        self._inside = network.inside(place)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def command(self) -> list[str]:
        """Return what runs it in the foreground."""

    @abstractmethod
    def prepare(self) -> None:
        """Write what it reads."""

    def start(self) -> None:
        """Run it; returns when it listens."""
        assert self._process is None, "it runs already"
        self.prepare()
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*self._inside, *self.command()],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.command()[0]} does not listen:\n{self.log_tail()}")
            time.sleep(0.03)

    def kill(self) -> None:
        """End it and all that it has started, at once: nothing of it can clean up."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def freeze(self) -> None:
        """Stop it where it stands: it still listens, and says nothing. `kill` ends it all the same."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def log_tail(self, characters: int = 3000) -> str:
        """Return the end of its logs."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-characters:]}" for log in self.folder.glob("*.log")
        )

    def _listens(self) -> bool:
        probe = ["bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{self.port}"]
        return subprocess.run([*self._inside, *probe], check=False, capture_output=True, timeout=10).returncode == 0


class Asked(NamedTuple):
    """A request that the origin answered; `bytes` are those of the body that it sent."""

    client: str
    method: str
    status: int
    bytes: int
    path: str


class OriginServer(Server):
    """An nginx with all that the site's origins have; its log is the count of what it cost them.

    `genomes` is a socket of a refgenieserver, `root` a folder of plain files; `rate` bounds each request, in bytes a
    second.
    """

    def __init__(self, network: Network, root: Path, genomes: Path, *, rate: str = "0") -> None:
        super().__init__(network, "origin", GENOMES, 80, "root")
        self.rate = rate
        self._root = root
        self._genomes = genomes
        self._skip = 0

    def restart(self, rate: str) -> None:
        """Stop and start, with another bound on a request's bytes a second; 0 is none."""
        self.kill()
        self.rate = rate
        self.start()

    def command(self) -> list[str]:
        where = str(self.folder)
        return ["nginx", "-p", where, "-e", f"{where}/error.log", "-c", f"{where}/nginx.conf"]

    def prepare(self) -> None:
        where = self.folder
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "\n".join(f"  {kind}_temp_path {where}/{kind};" for kind in kinds)
        tls = f"ssl_certificate {where}/cert.pem; ssl_certificate_key {where}/key.pem;"
        if not (where / "cert.pem").exists():
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={SECURE}",
                 "-addext", f"subjectAltName=IP:{SECURE},DNS:{SECURE}",
                 "-keyout", f"{where}/key.pem", "-out", f"{where}/cert.pem"],
                check=True, capture_output=True, timeout=60,
            )  # fmt: skip
        (where / "nginx.conf").write_text(f"""
user root;
daemon off;
worker_processes 1;
pid {where}/pid;
events {{ worker_connections 1024; }}
http {{
  log_format line '$remote_addr $request_method $status $body_bytes_sent $request_uri';
  access_log {where}/access.log line;
{temporary}
  limit_rate {self.rate};
  proxy_max_temp_file_size 0;
  server {{
    listen {GENOMES}:80;
    location / {{
      proxy_pass http://unix:{self._genomes}:/;
      proxy_http_version 1.1;
      proxy_set_header Host {GENOMES};
      proxy_set_header Connection "";
    }}
  }}
  server {{
    listen {FILES}:80;
    listen {SECURE}:443 ssl;
    {tls}
    root {self._root};
    autoindex on;
  }}
}}
""")

    @property
    def certificate(self) -> Path:
        """What its certificate is checked by."""
        return self.folder / "cert.pem"

    def log(self) -> list[Asked]:
        """Return what it answered since the start, or since `clear`."""
        path, seen = self.folder / "access.log", -1
        while (size := path.stat().st_size) != seen:
            seen = size
            time.sleep(SETTLE)
        with path.open() as file:
            file.seek(self._skip)
            rows = [line.split(maxsplit=4) for line in file.read(size - self._skip).splitlines()]
        return [Asked(client, method, int(status), int(sent), at) for client, method, status, sent, at in rows]

    def clear(self) -> None:
        """Begin the count anew."""
        self.log()
        self._skip = (self.folder / "access.log").stat().st_size


class NginxTier(Server):
    """nginx with `mount/cluster/nginx-tier.conf`."""

    kind = "nginx"

    def __init__(self, network: Network, number: int, trusted: Path | None = None) -> None:
        super().__init__(network, f"tier{number}", TIERS[number], 3128, "www-data")
        self._trusted = trusted

    def command(self) -> list[str]:
        return ["nginx", "-c", f"{self.folder}/nginx.conf", "-g", "daemon off;"]

    def prepare(self) -> None:
        paths = {
            "/var/cache/nginx/refgenfs": f"{self.folder}/cache",
            "/var/log/nginx": str(self.folder),
            "/run/nginx.pid": f"{self.folder}/pid",
        }
        if self._trusted is not None:
            paths["/etc/ssl/certs/ca-certificates.crt"] = str(self._trusted)
        (self.folder / "nginx.conf").write_text(recipe("nginx-tier.conf", paths))

    def outcomes(self) -> list[str]:
        """Return what became of each request: HIT, MISS and so on."""
        time.sleep(1.2)  # the log is written once a second
        return [line.split()[2] for line in (self.folder / "refgenfs.log").read_text().splitlines()]


class SquidTier(Server):
    """Squid with `mount/cluster/squid-tier.conf`."""

    kind = "squid"

    def __init__(self, network: Network, number: int, trusted: Path | None = None) -> None:
        del trusted
        super().__init__(network, f"tier{number}", TIERS[number], 3128, "proxy")

    def command(self) -> list[str]:
        return ["squid", "-N", "-f", f"{self.folder}/squid.conf"]

    def prepare(self) -> None:
        paths = {
            "/var/spool/squid/refgenfs": f"{self.folder}/cache",
            "/var/log/squid": str(self.folder),
            "/run/squid.pid": f"{self.folder}/pid",
            "visible_hostname cache1.example.org": "visible_hostname cache1.example.org\n",
        }
        (self.folder / "squid.conf").write_text(recipe("squid-tier.conf", paths))
        (self.folder / "pid").unlink(missing_ok=True)
        if not (self.folder / "cache").exists():
            subprocess.run(
                [*self.command(), "-z"], check=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
            )

    def outcomes(self) -> list[str]:
        """Return what became of each request: TCP_HIT, TCP_MISS and so on."""
        return [line.split()[3].partition("/")[0] for line in (self.folder / "access.log").read_text().splitlines()]


Tier = NginxTier | SquidTier


def recipe(name: str, paths: Mapping[str, str]) -> str:
    """Return a file of `mount/cluster` with the addresses of this network and other paths; nothing else differs."""
    text = (RECIPES / name).read_text()
    for here, there in {**paths, **NAMES}.items():
        assert here in text or here in NAMES, f"{name} doesn't name {here}"
        text = text.replace(here, there)
    return text


# --- nodes --------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """What a node's daemon runs with; its commands run in its network too."""

    network: Network
    number: int
    setup: Setup = field(repr=False)

    @property
    def prefix(self) -> list[str]:
        """What runs a command on the node."""
        return self.network.inside(f"node{self.number}")


def node_sources(name: str) -> str:
    """Return the [[source]] tables of a node's configuration in `mount/cluster`."""
    text = recipe(name, {})
    return text[text.index("[[source]]") :]


def make_node(network: Network, number: int, folder: Path, sources: str) -> Node:
    """Return a node with a cache and a mountpoint of its own."""
    folder = folder / f"node{number}"
    folder.mkdir(parents=True)
    return Node(network, number, Setup(folder, sources, limits={"read_deadline": "30s"}))


def together(commands: Sequence[Sequence[str]], *, timeout: int = 60) -> Iterator[subprocess.Popen[str]]:
    """Yield commands that run at one time, each killed after `timeout` seconds."""
    for words in commands:
        yield subprocess.Popen(
            ["timeout", "-s", "KILL", str(timeout), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def egress(asked: Sequence[Asked], containing: str) -> int:
    """Return the bytes of bodies that the origin sent for paths with this text."""
    return sum(one.bytes for one in asked if re.search(containing, one.path))
