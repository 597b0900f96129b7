#!/usr/bin/env bash
# Prints the lock of an image. Arguments: the image's folder, and the virtual environment its sources were installed
# into. What left-out.txt names stays out; anything that only this machine has is refused.
set -euo pipefail
leave_out=(--exclude tunegate --exclude pip)
if [[ -f $1/left-out.txt ]]; then
    while read -r name _; do
        [[ -z $name || $name == \#* ]] || leave_out+=(--exclude "$name")
    done <"$1/left-out.txt"
fi
cat "$1/header.txt"
lock=$("$2/bin/pip" freeze --all "${leave_out[@]}" | sed -E 's/^torch==([0-9.]+).*/torch==\1/')
if grep -n ' @ ' <<<"$lock" >&2; then
    echo "the lock names files of this machine: install them from an index first" >&2
    exit 1
fi
echo "$lock"
