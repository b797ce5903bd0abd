#!/usr/bin/env bash
# Run every test, in two halves side by side: each waits much of its time, for deadlines and for the kernel.
# With arguments, just what pytest makes of them.
#
# Two halves on a small machine can starve each other past a deadline that a test gives the kernel or a server. So the
# few that failed are run once more, with the machine to themselves, and named: what fails then too, fails.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

pytest=(.venv/bin/python -m pytest -q)
if (($#)); then
    exec "${pytest[@]}" "$@"
fi

few=3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# half NAME FOLDER...: what failed is remembered in a place of its own
half() {
    "${pytest[@]}" -o cache_dir="$scratch/$1" "${@:2}"
}

# again NAME STATUS: succeed if the half did, or if the few tests of it that failed succeed by themselves
again() {
    local failed=$scratch/$1/v/cache/lastfailed
    (($2 == 0)) && return
    (($2 == 1)) && [[ -s $failed ]] && (($(grep -c '::' "$failed") <= few)) || return "$2"
    printf -- '--- once more, alone:\n'
    sed -n "s,^ *\"\(.*\)\": true.*,\1,p" "$failed"
    "${pytest[@]}" -o cache_dir="$scratch/$1" --last-failed --last-failed-no-failures none -rA "${@:3}"
}

# Both may mount; each makes a refgenieserver of its own. Real mounts take as long as all the rest.
first=(tests/faults tests/install tests/integration tests/model tests/system tests/unit)
second=(tests/fuse)
half first "${first[@]}" >"$scratch/log" 2>&1 &
other=$!
trap 'kill "$other" 2>/dev/null || true' INT TERM

first_status=0 second_status=0 status=0
half second "${second[@]}" || second_status=$?
wait "$other" || first_status=$?
cat "$scratch/log"
again first "$first_status" "${first[@]}" || status=$?
again second "$second_status" "${second[@]}" || status=$?
exit "$status"
