#!/usr/bin/env bash
# Prints the lock of a virtual environment: its folder is the argument.
set -euo pipefail
cat "$(dirname "$0")/header.txt"
"$1/bin/pip" freeze --all --exclude tunegate --exclude pip | sed -E 's/^torch==([0-9.]+).*/torch==\1/'
