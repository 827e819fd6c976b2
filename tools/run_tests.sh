#!/usr/bin/env bash
# pytest with the arguments given, two processes of one thread each: on two cores more threads only wait for each other.
# Thousands of small databases wait for the disk. Where the machine has the memory to spare, their folder lies in it;
# a TMPDIR of yours is kept as it is, and keeps what failing tests left.
set -euo pipefail
memory=/dev/shm
needed=6000000 # KiB
if [ -z "${TMPDIR:-}" ] && [ -w "$memory" ] && [ "$(df -k "$memory" | awk 'END { print $4 }')" -gt "$needed" ] &&
    [ "$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)" -gt $((2 * needed)) ]; then
    TMPDIR=$(mktemp -d "$memory/mergefront-tests-XXXXXX")
    export TMPDIR
    chmod 1777 "$TMPDIR" # database servers run as users of their own
    trap 'rm -rf "$TMPDIR"' EXIT
fi
OMP_NUM_THREADS=1 "${PYTHON:-$(dirname "$0")/../.venv/bin/python}" -m pytest -q -n 2 --dist worksteal \
    -o tmp_path_retention_policy=failed "$@"
