#!/usr/bin/env bash
# Run every test, in two halves side by side: each waits much of its time, for deadlines and for the kernel.
# With arguments, just what pytest makes of them.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

pytest=(.venv/bin/python -m pytest -q)
if (($#)); then
    exec "${pytest[@]}" "$@"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Only the other half starts a refgenieserver; both may mount.
"${pytest[@]}" tests/faults tests/install tests/model >"$log" 2>&1 &
other=$!
trap 'kill "$other" 2>/dev/null || true' INT TERM

status=0
"${pytest[@]}" tests/fuse tests/integration tests/unit || status=$?
wait "$other" || status=$?
cat "$log"
exit "$status"
