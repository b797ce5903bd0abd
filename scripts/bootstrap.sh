#!/usr/bin/env bash
# Install what refgenfs needs on Debian or Ubuntu, and refgenfs itself into .venv. Quick when nothing is missing.
#
#   scripts/bootstrap.sh [runtime|dev|bench|deb]
#
#   runtime: to run it and its demo;  dev: also to test and check it;  bench: also what it is measured against;
#   deb: to build a package of it
#
# Environment:
#   PYTHON             the Python to use (default: the first of python3, python3.14 ... python3.11 that will do)
#   BOOTSTRAP_NO_APT=1 never call apt-get: name what is missing, and go on
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

level=${1:-runtime}
case $level in
    runtime | dev | bench | deb) ;;
    *)
        echo "usage: scripts/bootstrap.sh [runtime|dev|bench|deb]" >&2
        exit 2
        ;;
esac

# One at a time: two makes in one clone would both fill .venv. -o keeps the lock from what is started here.
if [[ -z ${BOOTSTRAP_LOCKED:-} ]] && command -v flock >/dev/null; then
    BOOTSTRAP_LOCKED=1 exec flock -o scripts/bootstrap.sh bash scripts/bootstrap.sh "$level"
fi

# Debian packages; a|b is satisfied by either, and a is what gets installed.
runtime_packages=(fuse3 libfuse3-dev 'pkg-config|pkgconf' gcc libc6-dev python3-dev python3-venv ca-certificates bwa)
dev_packages=(
    samtools bowtie2 tabix bcftools                    # read the mount as users do
    nginx-light                                        # serves byte ranges to the tests
    squid                                              # with nginx, the caches of the tests' cluster
    tinyproxy-bin                                      # a forward proxy between the daemon and the tests' servers
    git rsync curl attr strace util-linux procps iproute2  # look at the mount, and at the daemon
    chromium chromium-driver fonts-dejavu-core         # looks at the status page
    mount e2fsprogs                                    # disks of a test's own, to fill and to break
    debootstrap                                        # makes the bare root that the install test starts from
    man-db groff-base mandoc                           # read the manual pages, and look for faults in them
    systemd-container                                  # boots it, for the tests of the service
    dpkg-dev debhelper                                 # builds the package that they install
    podman runc busybox-static bubblewrap              # containers that bind the mount
    slurmctld slurmd slurm-client munge                # a cluster of one node
)
deb_packages=(dpkg-dev debhelper lintian)
bench_packages=(
    nginx-light curl samtools util-linux                # the origin, and who reads
    rclone                                              # a peer, as Debian has it
    'libfuse2|libfuse2t64'                              # what fsspec's FUSE stands on
)

log=.venv/bootstrap.log
stamp=.venv/bootstrap.stamp
where=.venv/bootstrap.where

pip_options=(--no-input --disable-pip-version-check)

say() { printf 'bootstrap: %s\n' "$*"; }

die() {
    printf 'bootstrap: %s\n' "$@" >&2
    exit 1
}

# Run "$2..." quietly into the log; on failure show the end of the log and stop.
logged() {
    local what=$1
    shift
    say "$what"
    printf '\n== %s: %s\n' "$(date '+%F %T')" "$*" >>"$log"
    if ! "$@" </dev/null >>"$log" 2>&1; then
        tail -n 25 "$log" | sed 's/^/  | /' >&2
        die "failed: $what (the whole log: $PWD/$log)"
    fi
}

# ---------------------------------------------------------------- Debian packages

# Print the packages of "$@" that are not installed, one a line.
missing_packages() {
    local -A installed=()
    local state name choice
    while read -r state name; do
        if [[ $state == installed ]]; then installed[$name]=1; fi
    done < <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null)
    for choice in "$@"; do
        for name in ${choice//|/ }; do
            if [[ -n ${installed[$name]:-} ]]; then continue 2; fi
        done
        echo "${choice%%|*}"
    done
}

# The prefix that makes a command run as root: nothing, or sudo, which asks for a password only on a terminal.
as_root=()
find_root() {
    if [[ $EUID -eq 0 ]]; then return 0; fi
    if ! command -v sudo >/dev/null; then return 1; fi
    as_root=(sudo)
    if sudo -n true 2>/dev/null; then return 0; fi
    [[ -t 0 ]] && sudo -v
}

# A package's own start script asks this file whether it may start a service. Tests start their own servers.
policy=/usr/sbin/policy-rc.d
policy_is_ours=
forbid_services() {
    if [[ -e $policy ]]; then return; fi
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    policy_is_ours=yes
    "${as_root[@]}" chmod 755 "$policy"
}
allow_services() {
    if [[ -n $policy_is_ours ]]; then "${as_root[@]}" rm -f "$policy"; fi
    policy_is_ours=
}
trap allow_services EXIT

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@"; }

install_packages() {
    local missing wanted=("${runtime_packages[@]}")
    if [[ $level == dev ]]; then wanted+=("${dev_packages[@]}"); fi
    if [[ $level == bench ]]; then wanted+=("${bench_packages[@]}"); fi
    if [[ $level == deb ]]; then wanted+=("${deb_packages[@]}"); fi
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system, so this is for you to install: ${wanted[*]%%|*}"
        return
    fi
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    if [[ ${#missing[@]} -eq 0 ]]; then return; fi
    if [[ -n ${BOOTSTRAP_NO_APT:-} ]]; then
        say "missing, and left so: ${missing[*]}"
        return
    fi
    local advice="apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        die "these packages are missing, and there is no apt-get to install them: ${missing[*]}"
    fi
    if ! find_root; then
        die "these packages are missing: ${missing[*]}" \
            "as root, or with a working sudo, this would install them; now have an administrator run:" \
            "    $advice" \
            "(BOOTSTRAP_NO_APT=1 goes on without them)"
    fi
    mkdir -p .venv
    logged "apt-get update" apt update
    forbid_services
    logged "apt-get install ${missing[*]}" apt install -y --no-install-recommends "${missing[@]}"
    allow_services
    if ! command -v systemctl >/dev/null; then return; fi
    local pair
    for pair in nginx-light:nginx squid:squid munge:munge slurmctld:slurmctld slurmd:slurmd; do  # not at the next boot, either
        if [[ " ${missing[*]} " == *" ${pair%:*} "* ]]; then
            "${as_root[@]}" systemctl disable "${pair#*:}" >>"$log" 2>&1 || true
        fi
    done
}

check_fuse() {
    if [[ ! -e /dev/fuse ]]; then
        say "warning: there is no /dev/fuse, so nothing can be mounted; as root: modprobe fuse"
    fi
}

# ---------------------------------------------------------------- Python

probe='
import os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit("is %d.%d, and 3.11 is the oldest that will do" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError as exc:
    sys.exit("lacks the module %s (on Debian: python%d.%d-venv)" % ((exc.name,) + sys.version_info[:2]))
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("lacks Python.h (on Debian: python%d.%d-dev)" % sys.version_info[:2])
print(sys.executable)
'

# Set python to the first interpreter that can make the environment and build pyfuse3.
find_python() {
    local candidate answer reasons=() seen=" " path
    for candidate in ${PYTHON:+"$PYTHON"} python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if ! path=$(command -v -- "$candidate"); then continue; fi
        if [[ $seen == *" $path "* ]]; then continue; fi
        seen+="$path "
        if answer=$("$path" -I -c "$probe" 2>&1); then
            python=$answer
            return
        fi
        reasons+=("    $path ${answer##*$'\n'}")
    done
    die "no Python that will do: refgenfs needs 3.11 or newer, with venv, ensurepip and the C headers" \
        "${reasons[@]:-    none was found on PATH}" "(PYTHON=/path/to/python3 names another one)"
}

# What .venv was filled from. It holds absolute paths, so a clone that has moved needs a new one.
fingerprint() {
    echo "$1"
    pwd -P
    sha256sum <pyproject.toml
}

is_current() {
    [[ -x .venv/bin/python && -f $stamp ]] || return 1
    local filled
    filled=$(<"$stamp")
    [[ $filled == "$(fingerprint dev)" || $filled == "$(fingerprint "$level")" ]] || return 1
    has_modules refgenfs pyfuse3
}

# Whether the environment finds modules "$@": it does not when its Python was upgraded under it.
has_modules() {
    .venv/bin/python -I -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' \
        "$@" 2>/dev/null
}

make_venv() {
    find_python
    find .venv -mindepth 1 -maxdepth 1 ! -name "${log##*/}" -exec rm -rf {} +
    logged "making .venv with $python" "$python" -m venv .venv
    pwd -P >"$where"
}

# Of the hundred packages that tests take, a recent pip finds out which in a fraction of the time, and most of their
# modules are never imported: for 13 s of a processor's time in place of 43.
quicken_pip() {
    pip_options+=(--no-compile)
    printf '\n== %s: a newer pip\n' "$(date '+%F %T')" >>"$log"
    .venv/bin/python -m pip install "${pip_options[@]}" --upgrade pip </dev/null >>"$log" 2>&1 || say "pip stays as it is"
}

install_python() {
    local target=. python=
    if [[ $level == bench ]]; then level=runtime; fi  # of refgenfs itself the benchmarks need no more
    if is_current; then return; fi
    # An environment that was made for tests stays one.
    if [[ $level == dev || -x .venv/bin/pytest ]]; then
        level=dev
        target='.[dev]'
    fi
    mkdir -p .venv
    rm -f "$stamp"
    if [[ $(cat "$where" 2>/dev/null) != "$(pwd -P)" ]] || ! has_modules pip; then make_venv; fi
    if [[ $level == dev ]]; then quicken_pip; fi
    logged "pip install -e $target" .venv/bin/python -m pip install "${pip_options[@]}" -e "$target"
    fingerprint "$level" >"$stamp"
    say "ready ($SECONDS s)"
}

# What needs an environment of its own, .venv/$1, made of the list $2: nothing of it changes what refgenfs runs with.
install_apart() {
    local name=$1 list=$2 made=.venv/$1/made-from
    if [[ -x .venv/$name/bin/python ]] && cmp -s "$list" "$made"; then return; fi
    logged "making .venv/$name" .venv/bin/python -m venv --clear --without-pip ".venv/$name"
    logged "pip install -r $list" .venv/bin/python -m pip --python ".venv/$name/bin/python" install \
        "${pip_options[@]}" -r "$list"
    cp "$list" "$made"
}

wanted=$level
install_packages
if [[ $level == deb ]]; then exit 0; fi
check_fuse
install_python
case $wanted in
    dev) install_apart recipes tests/recipes/requirements.txt ;;  # engines and validators that recipes are for
    bench) install_apart peers benchmarks/peers.txt ;;             # peers, and what draws the figures
    *) ;;
esac
