"""refgenfs as a service of a booted systemd: installed from the wheel, and looked at from outside of the unit.

One boot for all tests of this folder; each begins with the service down.
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from refgenfs.demo.build import DemoRoot
from refgenfs.demo.origin import Origin
from tests.conftest import REPOSITORY
from tests.support.booted import AUTOFS, PREFIX, Machine, make_wheels
from tests.support.instances import FASTA, UNIT, config
from tests.support.plain_files import plain_files

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.slow, pytest.mark.timeout(1200)]

PROGRAM = f"{PREFIX}/bin/refgenfs"
MEMORY_MAX = 160 << 20
READERS, READ_FILES, READ_SIZE = 3, 4, 64 << 20
UPDATEDB = 'PRUNE_BIND_MOUNTS="yes"\nPRUNEPATHS="/tmp /proc /sys /opt /usr"\nPRUNEFS="NFS afs autofs"\n'


@pytest.fixture(scope="module")
def up(booted_machine: Machine) -> Iterator[Machine]:
    """The machine, with this repository's wheel installed, and its units."""
    machine = booted_machine
    with tempfile.TemporaryDirectory() as name:
        make_wheels(Path(name), "--no-deps")
        (wheel,) = (Path(name) / "wheels").glob("refgenfs-*.whl")
        machine.send(wheel, f"/run/{wheel.name}")
    pip = f"{PREFIX}/bin/pip install -q --no-index --no-deps --force-reinstall /run/{wheel.name}"
    machine.shell(pip, timeout=120)
    machine.write("/etc/updatedb.conf", UPDATEDB)
    machine(PROGRAM, "service", "install", "--yes")
    yield machine
    machine(PROGRAM, "service", "uninstall")
    machine.shell("rm -rf /etc/refgenfs")


@pytest.fixture
def machine(up: Machine, origin: Origin) -> Iterator[Machine]:
    """The machine, with a configuration; whatever is mounted is gone at the end."""
    up.write("/etc/refgenfs/lab.toml", config(origin))
    try:
        yield up
    finally:
        print(up.log(UNIT))
        up("systemctl", "stop", UNIT, code=None)
        up.shell("systemctl reset-failed; umount -l /genomes || true", code=None)


def device(machine: Machine) -> str:
    return machine("mountpoint", "-d", "/genomes").out.strip()


def test_install_puts_everything_in_its_place(machine: Machine) -> None:
    assert machine("id", "-un", "refgenfs").out == "refgenfs\n"
    assert "fuse.refgenfs" in machine("cat", "/etc/updatedb.conf").out.partition("PRUNEFS")[2]
    again = machine(PROGRAM, "service", "install")  # nothing left to ask
    assert again.err == ""
    for place in ("/usr/local/share/man", f"{PREFIX}/share/man"):  # the service's, and the wheel's
        for page in ("man1/refgenfs.1", "man5/refgenfs.toml.5", "man8/mount.refgenfs.8"):
            machine("test", "-s", f"{place}/{page}")
    assert f"ExecStart={PROGRAM} mount" in machine("systemctl", "cat", UNIT).out
    verified = machine("systemd-analyze", "verify", f"{UNIT}.service")
    assert "refgenfs" not in verified.err
    assert machine("systemctl", "start", "refgenfs@nobody", code=None).code == 1  # no such configuration


def test_it_starts_and_is_read_and_stops(machine: Machine, md5: str) -> None:
    machine("systemctl", "start", UNIT)
    # seen outside of the unit, by every user, as soon as the start returns
    assert machine("findmnt", "-no", "FSTYPE", "/genomes").out == "fuse.refgenfs\n"
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert machine(*as_nobody, "md5sum", FASTA).out.split()[0] == md5
    assert machine.show(UNIT, "StatusText").startswith("serving /genomes: 1 genome; cache ")
    assert machine("cat", f"/sys/class/bdi/{device(machine)}/read_ahead_kb").out == "1024\n"
    pid = machine.show(UNIT, "MainPID")
    status = machine("cat", f"/proc/{pid}/status").out
    uid = machine("id", "-u", "refgenfs").out.strip()
    assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.MULTILINE)
    for held in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{held}:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert machine.show(UNIT, "OOMScoreAdjust") == "-500"
    assert "demo" in machine(PROGRAM, "status").out  # root finds the service's socket
    assert "demo" in machine(*as_nobody, PROGRAM, "list").out  # and so does everybody
    assert "a read fetches" in machine(*as_nobody, PROGRAM, "explain", FASTA).out
    doctor = machine(*as_nobody, PROGRAM, "doctor").out
    assert "/etc/refgenfs/lab.toml, the daemon's" in doctor
    assert "other users: let in to /genomes" in doctor
    refused = machine(*as_nobody, PROGRAM, "pin", "demo/bwa_index", code=1)
    assert "only root or the daemon's user may pin" in refused.err
    assert machine(PROGRAM, "pull", "demo/bwa_index").code == 0
    tasks = len(machine("ls", f"/proc/{pid}/task").out.split())
    assert tasks < int(machine.show(UNIT, "TasksMax")) // 2
    machine("systemctl", "stop", UNIT)
    assert machine("findmnt", "/genomes", code=None).code == 1
    assert machine.show(UNIT, "Result") == "success"
    # its cache is there in the next life
    machine("systemctl", "start", UNIT)
    assert machine("getfattr", "--only-values", "-n", "user.refgenfs.resident", FASTA).out == "100"


def test_indices_are_made_in_the_sandbox(machine: Machine, demo: DemoRoot) -> None:
    """They are made by processes that set limits of their own."""
    fasta = (demo.root / demo.digest / "fasta__default" / f"{demo.digest}.fa").read_text()
    sequence = "".join(fasta.split(">")[1].splitlines()[1:]).upper()
    name = hashlib.md5(sequence.encode()).hexdigest()
    text = machine("cat", "/etc/refgenfs/lab.toml").out
    machine.write("/etc/refgenfs/lab.toml", f'[refget]\ngenomes = ["demo"]\n{text}')
    machine("systemctl", "start", UNIT)
    path = f"/genomes/.refget/{name[:2]}/{name[2:4]}/{name[4:]}"
    machine.until(f"test -s {path}")
    assert machine("head", "-c", "3", "/genomes/demo/fasta/demo.dict").out == "@HD"  # which the origin doesn't have
    assert machine("md5sum", path).out.split()[0] == name
    assert "warning" not in machine("journalctl", "-u", UNIT, "-p", "warning", "-o", "cat").out


def test_stop_unmounts_also_while_files_are_open(machine: Machine) -> None:
    machine("systemctl", "start", UNIT)
    script = f"exec 3<{FASTA}; head -c 100 <&3 >/dev/null; systemctl stop {UNIT}; ! findmnt /genomes; cat <&3"
    assert "Transport endpoint is not connected" in machine("bash", "-c", script, code=1).err
    assert machine.show(UNIT, "ActiveState") == "inactive"
    assert machine("ls", "/genomes").out == ""


def test_a_killed_daemon_comes_back(machine: Machine, md5: str) -> None:
    machine("systemctl", "start", UNIT)
    machine("kill", "-KILL", machine.show(UNIT, "MainPID"))
    # until it is back, nobody is told that there are no genomes
    told = machine("ls", "/genomes", code=None)
    assert (told.code, told.out) == (2, "") or "demo" in told.out
    machine.until(f"systemctl is-active {UNIT} && md5sum {FASTA}")
    assert machine("md5sum", FASTA).out.split()[0] == md5
    assert machine.show(UNIT, "NRestarts") == "1"
    assert machine.shell("findmnt -no SOURCE /genomes | wc -l") == "1\n"


def test_a_daemon_that_hangs_is_killed_and_comes_back(machine: Machine, md5: str) -> None:
    machine.write(f"/run/systemd/system/{UNIT}.service.d/watchdog.conf", "[Service]\nWatchdogSec=2\n")
    machine("systemctl", "daemon-reload")
    try:
        machine("systemctl", "start", UNIT)
        machine("kill", "-STOP", machine.show(UNIT, "MainPID"))
        machine.until(f"test $(systemctl show {UNIT} -p NRestarts --value) = 1 && systemctl is-active {UNIT}")
        assert machine("md5sum", FASTA).out.split()[0] == md5
        assert "watchdog" in machine.log(UNIT).lower()
    finally:
        machine("rm", f"/run/systemd/system/{UNIT}.service.d/watchdog.conf")
        machine("systemctl", "daemon-reload")


def test_reload_takes_a_changed_configuration(machine: Machine, origin: Origin, md5: str) -> None:
    machine("systemctl", "start", UNIT)
    pid, where = machine.show(UNIT, "MainPID"), device(machine)
    machine.write("/etc/refgenfs/lab.toml", config(origin, size="50MB", name="other", point="/elsewhere"))
    machine("systemctl", "reload", UNIT)
    assert " of 50.0 MB; " in machine.show(UNIT, "StatusText")
    assert machine("md5sum", FASTA).out.split()[0] == md5
    assert 'mount.point stays "/genomes" until the next mount' in machine.log(UNIT)
    machine.write("/etc/refgenfs/lab.toml", "[cache]\nsise = 1\n")
    assert machine("systemctl", "reload", UNIT, code=None).code == 1
    assert "cache.sise: unknown key; did you mean 'size'" in machine.log(UNIT).replace('"', "'")
    assert machine.show(UNIT, "ActiveState") == "active"
    assert (machine.show(UNIT, "MainPID"), device(machine)) == (pid, where)
    machine.write("/etc/refgenfs/lab.toml", config(origin))
    machine("systemctl", "reload", UNIT)
    assert machine("md5sum", FASTA).out.split()[0] == md5


def test_what_the_sandbox_leaves_out_is_in_the_documentation(machine: Machine) -> None:
    told = machine("systemd-analyze", "security", "--no-pager", UNIT, code=None).out
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert score is not None
    print(f"systemd-analyze security: {score[1]}")
    assert float(score[1]) <= 2.0, told
    document = (REPOSITORY / "docs" / "service.md").read_text()
    if machine("systemctl", "--version").out.startswith("systemd 252 "):  # others weigh lines otherwise
        assert f"gives **{score[1]}**" in document
    missing = {match[1] for match in re.finditer(r"✗ ([A-Za-z]+)=", told)}
    assert missing
    assert not [name for name in missing if f"`{name}=" not in document]


def test_updatedb_keeps_out(machine: Machine) -> None:
    machine("systemctl", "start", UNIT)
    machine("updatedb", timeout=120)
    assert machine("locate", "/etc/refgenfs/lab.toml").out == "/etc/refgenfs/lab.toml\n"
    assert machine("locate", "--regex", "^/genomes/", code=None).out == ""


def test_limits_of_the_unit_are_those_of_its_processes(machine: Machine) -> None:
    """As far as the host lets them be: one that has less than CAP_SYS_RESOURCE lets nothing have less than 0."""
    lowest = machine.shell(
        "(echo -500 >/proc/self/oom_score_adj) 2>/dev/null && echo -500 || cat /proc/self/oom_score_adj"
    )
    machine("systemctl", "start", UNIT)
    pid = machine.show(UNIT, "MainPID")
    print(f"the host lets processes have an oom_score_adj of {lowest}")
    assert machine("cat", f"/proc/{pid}/oom_score_adj").out == lowest
    files = min(65536, int(machine.shell("ulimit -Hn").replace("unlimited", "65536")))
    assert re.search(rf"^Max open files +{files} +{files} ", machine("cat", f"/proc/{pid}/limits").out, re.MULTILINE)
    assert machine.show(UNIT, "OOMPolicy") == "continue"
    for controller, name in (("memory", "MemoryMax"), ("pids", "TasksMax")):
        file, _ = bound_of(machine, pid, controller)
        assert machine("cat", file).out.strip() == machine.show(UNIT, name)


def bound_of(machine: Machine, pid: str, controller: str) -> tuple[str, str]:
    """Return the file with the limit that a process has by a controller, and that with what happened there."""
    groups = machine("cat", f"/proc/{pid}/cgroup").out
    old = re.search(rf"^\d+:{controller}:(/.+{UNIT}.*)$", groups, re.MULTILINE)
    if old is not None:
        limit, events = {"memory": ("limit_in_bytes", "oom_control"), "pids": ("max", "events")}[controller]
        folder = f"/sys/fs/cgroup/{controller}{old[1]}"
    else:
        new = re.search(rf"^0::(/.+{UNIT}.*)$", groups, re.MULTILINE)
        assert new is not None
        limit, events, folder = "max", "events", f"/sys/fs/cgroup{new[1]}"
    return f"{folder}/{controller}.{limit}", f"{folder}/{controller}.{events}"


def test_heavy_reads_stay_within_little_memory(machine: Machine, tmp_path: Path) -> None:
    """Three readers of 256 MiB, within 160 MiB for the daemon and its cache's pages: nobody is killed."""
    sums = {}
    for number in range(READ_FILES):
        data = random.Random(number).randbytes(1 << 20) * (READ_SIZE >> 20)
        (tmp_path / f"{number}.bin").write_bytes(data)
        sums[f"/genomes/big/raw/{number}.bin"] = hashlib.md5(data).hexdigest()
    machine.shell("install -d -o refgenfs -g refgenfs /srv/disk/cache")
    conf = f"[Service]\nMemoryMax={MEMORY_MAX}\nMemoryHigh=infinity\nTasksMax=64\nReadWritePaths=/srv/disk/cache\n"
    machine.write(f"/run/systemd/system/{UNIT}.service.d/small.conf", conf)
    machine("systemctl", "daemon-reload")
    with plain_files(tmp_path) as served:
        source = served.source({"big/raw": [f"{number}.bin" for number in range(READ_FILES)]})
        settings = '[mount]\npoint = "/genomes"\n[cache]\ndir = "/srv/disk/cache"\nsize = "200MB"\nmin_free = "0%"\n'
        machine.write("/etc/refgenfs/lab.toml", settings + source)
        try:
            machine("systemctl", "start", UNIT)
            limit, events = bound_of(machine, machine.show(UNIT, "MainPID"), "memory")
            assert machine("cat", limit).out == f"{MEMORY_MAX}\n"
            assert "limits.memory is 33.6 MB, not 67.1 MB: the cgroup has 168 MB" in machine.log(UNIT)
            # direct, so that every byte is the daemon's to give; and more than its cache holds
            read = (
                'for f in $(shuf -e "$@"); do dd if=$f bs=1M iflag=direct status=none | md5sum | sed "s,-,$f,"; done'
            )
            script = f"for at in $(seq {READERS}); do ({read}) & done; wait"
            told = machine("bash", "-c", script, "readers", *sums, timeout=400).out.splitlines()
            assert len(told) == READERS * READ_FILES
            assert all(sums[line.split()[1]] == line.split()[0] for line in told)
            assert machine.show(UNIT, "NRestarts") == "0"
            happened = machine("cat", events).out
            assert re.search(r"^oom_kill 0$", happened, re.MULTILINE), happened
            peak = machine.shell(
                f"cd $(dirname {limit}); cat memory.max_usage_in_bytes memory.peak 2>/dev/null || true"
            )
            print(f"at most {peak.strip()} bytes of {MEMORY_MAX}, of which {rss(machine)} are the daemon's")
        finally:
            machine("systemctl", "stop", UNIT, code=None)
            machine("rm", "-rf", f"/run/systemd/system/{UNIT}.service.d/small.conf", "/srv/disk/cache")
            machine("systemctl", "daemon-reload")


NODE = r"""
install -d -o refgenfs -g refgenfs -m 700 /local/refgenfs
mkdir -p /etc/systemd/system/refgenfs@config.service.d
echo '[Service]' > /etc/systemd/system/refgenfs@config.service.d/cache.conf
echo 'ReadWritePaths=/local/refgenfs' >> /etc/systemd/system/refgenfs@config.service.d/cache.conf
systemctl daemon-reload
systemctl enable --now refgenfs@config
refgenfs cache info
"""


def test_a_node_s_cache_is_on_its_own_disk(machine: Machine, origin: Origin, md5: str) -> None:
    """As a cluster's configuration has it; a unit that may not write there says so, and serves all the same."""
    text = config(origin)
    assert "[cache]\n" in text
    machine.write("/etc/refgenfs/config.toml", text.replace("[cache]\n", '[cache]\ndir = "/local/refgenfs"\n'))
    try:
        machine("systemctl", "start", "refgenfs@config")
        assert machine("md5sum", FASTA).out.split()[0] == md5
        assert "a unit needs ReadWritePaths= for it" in machine.log("refgenfs@config")
        machine("systemctl", "stop", "refgenfs@config")
        told = machine.shell(f"PATH={PREFIX}/bin:$PATH; {NODE}", timeout=120)
        assert re.search("^directory +/local/refgenfs$", told, re.MULTILINE)
        assert machine("md5sum", FASTA).out.split()[0] == md5
        assert machine.shell("ls /local/refgenfs/contents | wc -l") != "0\n"
    finally:
        machine("systemctl", "disable", "--now", "refgenfs@config", code=None)
        machine.shell(
            "rm -rf /etc/systemd/system/refgenfs@config.service.d /local/refgenfs /etc/refgenfs/config.toml"
        )
        machine("systemctl", "daemon-reload")


def rss(machine: Machine) -> str:
    """Return the peak of the daemon's resident memory, as /proc says it."""
    status = machine("cat", f"/proc/{machine.show(UNIT, 'MainPID')}/status").out
    return " ".join(status.partition("VmHWM:")[2].splitlines()[0].split())


def test_a_user_s_own_unit(machine: Machine, origin: Origin, md5: str) -> None:
    """Of somebody who is not root, by that user's own manager, which goes on after the logout."""
    machine("useradd", "--create-home", "--shell", "/bin/bash", "ann")
    uid = machine("id", "-u", "ann").out.strip()
    machine.write("/home/ann/.config/refgenfs/mine.toml", config(origin, point="/home/ann/genomes"))
    machine("chown", "-R", "ann:ann", "/home/ann/.config")

    def user(*command: str) -> str:
        as_ann = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups"]
        environ = {"XDG_RUNTIME_DIR": f"/run/user/{uid}", "HOME": "/home/ann", "USER": "ann"}
        return machine("env", *(f"{name}={value}" for name, value in environ.items()), *as_ann, *command).out.strip()

    unit, fasta = "refgenfs@mine", "/home/ann/genomes/demo/fasta/demo.fa"
    try:
        machine("loginctl", "enable-linger", "ann")
        machine.until(f"test -S /run/user/{uid}/systemd/private")
        user("mkdir", "/home/ann/genomes")
        user("systemctl", "--user", "enable", "--now", unit)
        assert user("md5sum", fasta).split()[0] == md5
        status = user("systemctl", "--user", "show", unit, "-p", "StatusText", "--value")
        assert status.startswith("serving /home/ann/genomes: 1 genome; ")
        pid = user("systemctl", "--user", "show", unit, "-p", "MainPID", "--value")
        assert machine("stat", "-c", "%U", f"/proc/{pid}").out == "ann\n"
        assert "demo" in user(PROGRAM, "status")  # her own daemon answers her
        assert machine("ls", "/home/ann/genomes", code=None).code == 2  # it is hers alone: not even root's
        user("systemctl", "--user", "reload", unit)
        user("kill", "-KILL", pid)
        machine.until(f"setpriv --reuid={uid} --regid={uid} --clear-groups md5sum {fasta}")
        user("systemctl", "--user", "stop", unit)
        assert machine("findmnt", "/home/ann/genomes", code=None).code == 1
    finally:
        print(machine("journalctl", "-n", "30", "-o", "cat", f"_UID={uid}").out)
        machine("loginctl", "disable-linger", "ann", code=None)
        machine("systemctl", "stop", f"user@{uid}.service", code=None)
        machine.shell("umount -l /home/ann/genomes; userdel --remove ann", code=None)


# --- mount(8), fstab, autofs ----------------------------------------------------------------------------------


def daemons(machine: Machine) -> list[str]:
    return machine("pgrep", "-f", "refgenfs.daemon", code=None).out.split()


def test_mount_and_umount_as_any_file_system(machine: Machine, md5: str) -> None:
    machine("/bin/mount", "-t", "refgenfs", "lab", "/genomes", PATH="", HOME="")  # who calls may have none
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert machine(*as_nobody, "md5sum", FASTA).out.split()[0] == md5
    assert machine("findmnt", "-no", "FSTYPE,SOURCE", "/genomes").out.split() == ["fuse.refgenfs", "refgenfs"]
    machine("mount", "-t", "refgenfs", "/etc/refgenfs/lab.toml", "/genomes")  # it is there: nothing to do
    assert machine.shell("findmnt -no TARGET /genomes | wc -l") == "1\n"
    for command in (
        ("mount", "-o", "remount", "/genomes"),
        ("mount", "-o", "remount,rw", "-t", "refgenfs", "/genomes"),
    ):
        refused = machine(*command, code=None)
        assert refused.code == 1
        assert "`refgenfs reload /genomes` takes what changed" in refused.err
    machine("umount", "/genomes")
    machine.until("! pgrep -f [r]efgenfs.daemon")
    assert machine("mount", "-f", "-t", "refgenfs", "lab", "/genomes").code == 0  # faked
    assert machine("findmnt", "/genomes", code=None).code == 1


def test_a_mount_that_fails_says_why(machine: Machine, origin: Origin) -> None:
    def told(*command: str) -> tuple[int, str]:
        done = machine("mount", "-t", "refgenfs", *command, code=None)
        assert machine("findmnt", "/genomes", code=None).code == 1
        return done.code, done.err

    assert told("nobody", "/genomes") == (
        1,
        "mount.refgenfs: nobody: there is no /etc/refgenfs/nobody.toml; write one, or the path of a configuration\n",
    )
    code, err = told("-o", "cache_sise=1GB", "lab", "/genomes")
    assert (code, "did you mean 'cache_size'" in err) == (1, True)
    assert machine("mount", "-s", "-t", "refgenfs", "-o", "sloppy=1,ro", "lab", "/genomes").code == 0
    machine("umount", "/genomes")
    machine.until("! pgrep -f [r]efgenfs.daemon")
    machine.write("/etc/refgenfs/away.toml", config(origin).replace("[mount]\n", '[mount]\nallow_other = "who"\n'))
    code, err = told("away", "/genomes")
    assert (code, "mount.allow_other" in err) == (1, True)
    code, err = told("-o", "cache_dir=/proc/nowhere", "lab", "/genomes")
    assert code == 32, err


# What accesses are to be waited for takes a kernel that has it; then nothing is skipped.
FIRST_ACCESS = ["mount", "automount"] if AUTOFS.exists() else ["mount"]


@pytest.mark.parametrize("kind", FIRST_ACCESS)
def test_a_line_in_fstab(machine: Machine, md5: str, kind: str) -> None:
    line = "lab /genomes refgenfs _netdev,nofail,x-systemd.automount,cache_size=50MB 0 0"
    machine.write("/etc/fstab", f"{line}\n")
    try:
        machine("systemctl", "daemon-reload")
        machine("systemctl", "start", f"genomes.{kind}")
        if kind == "automount":
            assert daemons(machine) == []  # until the first access
        assert machine("md5sum", FASTA).out.split()[0] == md5
        assert machine.show("genomes.mount", "ActiveState") == "active"
        assert len(daemons(machine)) == 1
        machine("mount", "-a")
        assert len(daemons(machine)) == 1
        machine("systemctl", "stop", f"genomes.{kind}", "genomes.mount")
        machine.until("! pgrep -f [r]efgenfs.daemon")
        machine("mount", "/genomes")  # by the line, without systemd
        assert machine("cat", f"/sys/class/bdi/{device(machine)}/read_ahead_kb").out == "1024\n"
        machine("umount", "/genomes")
        machine.until("! pgrep -f [r]efgenfs.daemon")
    finally:
        machine("systemctl", "stop", "genomes.automount", code=None)
        machine.write("/etc/fstab", "")
        machine("systemctl", "daemon-reload")


@pytest.mark.parametrize("kind", FIRST_ACCESS[1:])
def test_autofs_mounts_at_the_first_access(machine: Machine, md5: str, kind: str) -> None:
    machine.write("/etc/auto.master.d/refgenfs.autofs", "/ref /etc/auto.refgenfs --timeout=600\n")
    machine.write("/etc/auto.refgenfs", "lab -fstype=refgenfs :/etc/refgenfs/lab.toml\n")
    machine("systemctl", "start", "autofs")
    try:
        assert machine("md5sum", "/ref/lab/demo/fasta/demo.fa", timeout=20).out.split()[0] == md5
        assert machine("findmnt", "-no", "FSTYPE", "/ref/lab").out == "fuse.refgenfs\n"
    finally:
        machine("systemctl", "stop", "autofs", code=None)
        machine("umount", "-l", "/ref/lab", code=None)
        print(machine.log("autofs"))
        machine.until("! pgrep -f [r]efgenfs.daemon", 5)
