#!/usr/bin/env bash
# Run every test, in lanes side by side, two for each core: tests wait much of their time, for deadlines and for the
# kernel. A lane takes file after file; those that take longest come first (tests/conftest.py).
# With arguments, just what pytest makes of them. REFGENFS_TEST_LANES=1 runs one test after the other.
#
# Lanes on a small machine can starve each other past a deadline that a test gives the kernel or a server. So the few
# that failed are run once more, with the machine to themselves, and named: what fails then too, fails.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

pytest=(.venv/bin/python -m pytest -q)
if (($#)); then
    exec "${pytest[@]}" "$@"
fi

few=5
most=8 # lanes: each starts servers of its own
lanes=${REFGENFS_TEST_LANES:-$(($(nproc) * 2))}
lanes=$((lanes < most ? lanes : most))

failed=.pytest_cache/v/cache/lastfailed
rm -f "$failed" # of this run, and of no other
status=0
"${pytest[@]}" -n "$lanes" --no-loadscope-reorder || status=$?
if ((status != 1)) || [[ ! -s $failed ]] || (($(grep -c '::' "$failed") > few)); then
    exit "$status"
fi
printf -- '--- once more, alone:\n'
sed -n "s,^ *\"\(.*\)\": true.*,\1,p" "$failed"
exec "${pytest[@]}" -rA --last-failed --last-failed-no-failures none
