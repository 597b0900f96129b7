#!/usr/bin/env bash
# Prints the lock of a virtual environment: its folder is the argument. Fails on anything that only this machine has.
set -euo pipefail
cat "$(dirname "$0")/header.txt"
lock=$("$1/bin/pip" freeze --all --exclude tunegate --exclude pip | sed -E 's/^torch==([0-9.]+).*/torch==\1/')
if grep -n ' @ ' <<<"$lock" >&2; then
    echo "the lock names files of this machine: install them from an index first" >&2
    exit 1
fi
echo "$lock"
