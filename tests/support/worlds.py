"""The world that the documentation's commands are run in: hosts of its examples, and a machine for each page.

One process holds a network of its own, with nothing but a loopback: nginx there answers as genomes.example.org and
the other hosts that the pages name, by http and https, and an origin behind it serves a simulated genome called hg38.
Each page has mounts and processes of its own, and a root that is this machine's with a layer over it that is thrown
away: it may write /etc/refgenfs, mount on /genomes, and leave daemons behind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from refgenfs.demo.build import TAG, build_demo_root
from refgenfs.demo.genome import Contig, Genome, make_genome
from tests.conftest import REPOSITORY

USER = "eve"  # who isn't root; has no sudo
HOMES = {"root": "/root", "user": f"/home/{USER}"}
BASES = 1_200_000  # a half: chr20, which has 45 %, has to have its millionth
READY_SECONDS = 30
PAGE_SECONDS = 240  # for a page's whole session
ORIGIN = "http://127.0.0.1:8000"
GENOME_HOSTS = "genomes.example.org genomes2.example.org refgenomes.databio.org"
FILE_HOSTS = "www.example.org mirror.example.org"
HOSTS = f"{GENOME_HOSTS} {FILE_HOSTS} host.example htsget.example.org".split()

NGINX = """\
user root;
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  ssl_certificate {folder}/cert.pem;
  ssl_certificate_key {folder}/key.pem;
  default_type application/octet-stream;
  server {{
    listen 80; listen 443 ssl; server_name {genome_hosts};
    location / {{
      proxy_pass {origin}; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_set_header Accept-Encoding "";
      proxy_redirect {origin} $scheme://$host; sub_filter {origin} $scheme://$host; sub_filter_once off;
      sub_filter_types application/json text/plain; proxy_max_temp_file_size 0;
    }}
  }}
  server {{
    listen 80; listen 443 ssl; server_name {file_hosts}; root {folder}/site; autoindex on;
  }}
  server {{ listen 80; listen 443 ssl; server_name host.example; root {folder}/www; }}
  server {{ listen 80; listen 443 ssl; server_name htsget.example.org; root {folder}/htsget; }}
}}
"""

# The first process of the network: it ends, and all others with it, when its standard input does.
NETWORK = r"""
set -eu
ip link set lo up
nginx -c "$1/nginx.conf" &
"$2" -m refgenfs.demo.origin --root "$3" --port 8000 --remotes &
echo begun
read -r _ || true
"""

# Beside the network: "$1" is a folder for the layer, "$2" the script, "$3" has what every page finds at home, "$4" is
# whose home that is, and "$5" where; the rest are folders that this Python and this code are in.
PAGE = r"""
set -eu
mount -t tmpfs -o mode=755 layer "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cp "$2" "$1/root/session"
(cd "$1/root" && rm -rf genomes etc/refgenfs var/cache/refgenfs* run/refgenfs* var/log/refgenfs
 cd root && rm -rf genomes .config/refgenfs .cache/refgenfs .local/state/refgenfs)
cat "$3/hosts" >"$1/root/etc/hosts"
cat "$3/cert.pem" >>"$1/root/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$1/root/scratch" "$1/root/srv/www"
mount --bind "$3/www" "$1/root/srv/www"
mount --rbind /dev "$1/root/dev"
mount --rbind /sys "$1/root/sys"
mount -t proc proc "$1/root/proc"
mount -t tmpfs -o mode=1777 tmp "$1/root/tmp"
mknod -m 666 "$1/fuse" c $((0x$(stat -c %t /dev/fuse))) $((0x$(stat -c %T /dev/fuse)))
mount --bind "$1/fuse" "$1/root/dev/fuse"
for folder in "${@:6}"; do
    if [ "$(stat -c %d "$folder")" != "$(stat -c %d /)" ]; then  # of another disk, which the layer doesn't show
        mkdir -p "$1/root$folder"
        mount --rbind "$folder" "$1/root$folder"
    fi
    while [ "$folder" != / ]; do
        folder=$(dirname "$folder")
        chmod o+x "$1/root$folder" 2>/dev/null || true
    done
done
if [ "$4" != root ]; then chroot "$1/root" useradd -m -d "$5" -s /bin/bash "$4"; fi
cp -r "$3/home/." "$1/root$5/"
chroot "$1/root" chown "$4:" "$5/r1.fq" "$5/r2.fq"
cd "$1/root"
mkdir old
pivot_root . old  # and not chroot alone: who is in one may make no user namespace
umount -l old
exec chroot . runuser -u "$4" -- env HOME="$5" USER="$4" bash /session
"""


@dataclass(frozen=True, slots=True)
class World:
    """The network and what is in it. `run` makes a machine in it and has a session there."""

    folder: Path
    leader: int  # the process that holds the network

    def run(self, session: str, who: str = "root") -> str:
        """Run a script on a machine of its own, as root or user; return all that it printed, also when killed."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="page-") as name:
            page = Path(name)
            (page / "layer").mkdir()
            (page / "session").write_text(session)
            enter = ["nsenter", "-t", str(self.leader), "-n", "--"]
            apart = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"]
            paths = [str(page / "layer"), str(page / "session"), str(self.folder)]
            needed = sorted({str(REPOSITORY), sys.prefix, sys.base_prefix})
            command = ["bash", "-c", PAGE, "page", *paths, "root" if who == "root" else USER, HOMES[who], *needed]
            with (page / "printed").open("w") as output:
                subprocess.run(
                    ["timeout", "-s", "KILL", str(PAGE_SECONDS), *enter, *apart, *command],
                    env=_environ(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, cwd="/",
                )  # fmt: skip
            return (page / "printed").read_text(errors="replace")


def _environ() -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",  # not every Python looks where the system's does
        "NO_COLOR": "1",
    }


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Make what the hosts serve, and run them."""
    served = folder / "served"
    _make_origin(served)
    _make_home(folder / "home", served)
    _make_site(folder / "site", served)
    _make_tickets(folder / "htsget")
    (folder / "www").mkdir()
    _make_certificate(folder)
    (folder / "hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename} {' '.join(HOSTS)}\n")
    configuration = NGINX.format(folder=folder, origin=ORIGIN, genome_hosts=GENOME_HOSTS, file_hosts=FILE_HOSTS)
    (folder / "nginx.conf").write_text(configuration)
    with ExitStack() as stack:
        log = stack.enter_context((folder / "servers.log").open("w"))
        apart = ["unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"]
        process = stack.enter_context(subprocess.Popen(
            [*apart, "bash", "-c", NETWORK, "network", str(folder), sys.executable, str(served)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=REPOSITORY,
        ))  # fmt: skip
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n", (folder / "servers.log").read_text()
        (leader,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        made = World(folder, int(leader))
        _wait_for(made)
        yield made


def _wait_for(made: World) -> None:
    """Wait until every host answers."""
    urls = ["https://genomes.example.org/v3/genomes/list", "http://www.example.org/"]
    asks = " && ".join(f"curl -sf -o /dev/null {url}" for url in urls)
    give_up = time.monotonic() + READY_SECONDS
    while "answered" not in (told := made.run(f"cd; {asks} && echo answered")):
        assert time.monotonic() < give_up, told + (made.folder / "servers.log").read_text()
        time.sleep(0.2)


# --- what they serve ----------------------------------------------------------------------------------------------


def _genome() -> Genome:
    """Return a genome whose chromosomes have the names that the pages use."""
    contigs = make_genome(seed=20, length=2 * BASES).contigs
    names = ("chr20", "chr1", "chr21", "chrM")  # the longest first
    return Genome(tuple(Contig(name, contig.bases) for name, contig in zip(names, contigs, strict=True)))


def _make_origin(root: Path) -> None:
    """Build a refgenieserver's folder: hg38 with fasta, bwa_index, bowtie2_index:second and the reads na12878."""
    demo = build_demo_root(root, genome=_genome(), reads=8_000)
    home, digest = root / demo.digest, demo.digest
    fasta = demo.unpacked("fasta") / f"{digest}.fa"
    reads = home / f"na12878__{TAG}"
    reads.mkdir()
    script = 'bwa mem -v 1 "$1" "$2" | samtools sort -o "$3" - && samtools index "$3"'
    index = demo.unpacked("bwa_index") / f"{digest}.fa"
    _run("bash", "-c", script, "align", str(index), str(demo.reads), str(reads / "na12878.bam"))
    bowtie2 = home / "bowtie2_index__second"
    bowtie2.mkdir()
    _run("bowtie2-build", "-q", str(fasta), str(bowtie2 / digest))
    catalog = json.loads((root / "genomes.json").read_text())
    genome = catalog[digest]
    genome["aliases"] = ["hg38"]
    genome["genome_description"] = "a simulated genome"
    genome["assets"]["na12878"] = _publish(
        reads, "na12878", TAG, {"na12878": "na12878.bam", "bai": "na12878.bam.bai"}
    )
    genome["assets"]["bowtie2_index"] = _publish(bowtie2, "bowtie2_index", "second", {"bowtie2_index": digest})
    (root / "genomes.json").write_text(json.dumps(catalog))


def _publish(folder: Path, asset: str, tag: str, seek_keys: dict[str, str]) -> dict[str, object]:
    """Pack an asset's folder beside it, and return its entry for the catalog."""
    home, archive = folder.parent, folder.parent / f"{asset}__{tag}.tgz"
    names = sorted(os.listdir(folder))
    _run(
        "tar", "-C", str(folder.parent), "--transform", f"s,^{folder.name},{tag},", "-czf", str(archive), folder.name
    )
    (home / f"asset_dir_contents_{asset}__{tag}.json").write_text(json.dumps(names))
    size = f"{sum((folder / name).stat().st_size for name in names) / 2**20:.2f} MB"
    attrs = {
        "asset_path": asset,
        "asset_digest": _md5(folder / names[0]),
        "archive_digest": _md5(archive),
        "asset_size": size,
        "archive_size": size,
        "seek_keys": {"dir": ".", **seek_keys},
        "asset_parents": [],
        "asset_children": [],
    }
    return {"asset_description": asset, "tags": {tag: attrs}, "default_tag": tag}


def _md5(file: Path) -> str:
    return _run("md5sum", str(file)).split()[0]


def _make_home(home: Path, served: Path) -> None:
    """Make what a page finds in the home: reads to align."""
    home.mkdir()
    lines = (served / "reads.fq").read_text().splitlines(keepends=True)[:8000]
    (home / "r1.fq").write_text("".join(lines))
    (home / "r2.fq").write_text("".join(lines))


def _make_site(site: Path, served: Path) -> None:
    """Make the web servers' folders: genomes in the layout "plain"."""
    (fasta,) = served.glob("*/fasta__default/*.fa")
    for folder in ("genomes/hg38/fasta", "mouse/indexes/bwa"):
        (site / folder).mkdir(parents=True)
    shutil.copy(fasta, site / "genomes/hg38/fasta/hg38.fa")
    (bam,) = served.glob("*/na12878__default/*.bam")
    shutil.copy(bam, site / "NA12878.bam")
    for archive in served.glob("*/*.tgz"):
        shutil.copy(archive, site)
    (site / "mouse/indexes/bwa/GRCm39.fa.amb").write_text("0 0 0\n")
    _run("bash", "-c", 'head -c 100000 "$1" | gzip >"$2"', "pack", str(fasta),
         str(site / "mouse/GCF_000001635.27_GRCm39_genomic.fna.gz"))  # fmt: skip


def _make_tickets(folder: Path) -> None:
    """Make what a htsget server with one id would answer: a ticket for all of its data."""
    ticket = {"htsget": {"format": "BAM", "urls": [{"url": "https://www.example.org/NA12878.bam"}]}}
    (folder / "reads/1000g").mkdir(parents=True)
    (folder / "reads/1000g/NA12878").write_text(json.dumps(ticket))


def _make_certificate(folder: Path) -> None:
    """Make a certificate for all of the hosts, which each page's machine trusts."""
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    _run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=example",
         "-addext", f"subjectAltName={names}", "-keyout", str(folder / "key.pem"),
         "-out", str(folder / "cert.pem"))  # fmt: skip


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr}"
    return done.stdout
